"""POST /generate/stream: a call's progress as server-sent events.

`queued` and `step` carry the picture's index and how far it is, `preview` a JPEG of what there is
so far, `done` what /generate answers as JSON, `error` what it answers when it fails. One `done` or
`error` comes last.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

from sdxl_bento.pictures.encode import encode
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.errors import error_body, error_response, status_of
from sdxl_bento.protocols.native.routes import Answer, NativeAPI, answer_json, logged
from sdxl_bento.serving.results import Progress

if TYPE_CHECKING:
    Work = Callable[[Call, Callable[[Progress], None]], Awaitable[Answer]]
    Happening = Progress | Answer | Exception | None

KEEP_ALIVE_S = 10.0
KEEP_ALIVE = b": still here\n\n"  # proxies close silent connections
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def stream(api: NativeAPI, call: Call) -> Response:
    """The answer to /generate/stream. What fails before the first event still gets a status."""
    happened = happenings(api, call, api.text_to_image)
    first = await anext(happened)
    if isinstance(first, Exception):
        await happened.aclose()
        return error_response(logged(first, call), call.request_id)
    headers = {**HEADERS, "X-Request-Id": call.request_id}
    events = _events(first, happened, call)
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


async def happenings(api: NativeAPI, call: Call, work: Work) -> AsyncGenerator[Happening]:
    """What happens to a call until it ends, which its answer or its error tells.

    None is given where nothing has happened for `KEEP_ALIVE_S`. To close it early ends the call.
    """
    loop = asyncio.get_running_loop()
    progress: asyncio.Queue[Progress | None] = asyncio.Queue()

    def on_progress(step: Progress) -> None:  # may come from the engine's thread
        loop.call_soon_threadsafe(progress.put_nowait, step)

    task = asyncio.create_task(api.run(call, work(call, on_progress)))
    task.add_done_callback(lambda _: progress.put_nowait(None))
    try:
        while True:
            try:
                step = await asyncio.wait_for(progress.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield None
                continue
            if step is None:
                break
            yield step
        yield outcome(task)
    finally:
        if not task.done():
            task.cancel()


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def outcome(task: asyncio.Task[Answer]) -> Answer | Exception:
    """What a finished call ended with."""
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception):
        raise error
    return error


async def _events(
    first: Happening, happened: AsyncGenerator[Happening], call: Call
) -> AsyncIterator[bytes]:
    async with aclosing(happened):
        for each in await _events_of(first, call):
            yield each
        async for what in happened:
            for each in await _events_of(what, call):
                yield each


async def _events_of(what: Happening, call: Call) -> list[bytes]:
    if what is None:
        return [KEEP_ALIVE]
    if isinstance(what, Progress):
        return await _progress_events(what)
    if isinstance(what, Answer):
        return [event("done", answer_json(what))]
    body = error_body(logged(what, call), call.request_id)
    return [event("error", {"error": body["error"] | {"status": int(status_of(what))}})]


async def _progress_events(step: Progress) -> list[bytes]:
    about = {"request_id": step.request_id, "index": step.index, "stage": step.stage}
    if step.stage == "queued":
        return [event("queued", about | {"position": step.position})]
    events = [event("step", about | {"step": step.step, "steps": step.steps})]
    if step.preview is not None:
        jpeg = await asyncio.to_thread(encode, step.preview, "jpeg", quality=80)
        picture = base64.b64encode(jpeg).decode("ascii")
        events.append(event("preview", about | {"step": step.step, "jpeg": picture}))
    return events
