"""POST /generate/stream: a call's progress as server-sent events.

`queued` and `step` carry the picture's index and how far it is, `preview` a JPEG of what there is
so far, `done` what /generate answers as JSON, `error` what it answers when it fails. One `done` or
`error` comes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import Response

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.encode import encode
from sdxl_bento.protocols.http.answers import base64_of
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.errors import error_body, error_response, logged, status_of
from sdxl_bento.protocols.http.event_stream import KEEP_ALIVE, event, event_stream
from sdxl_bento.protocols.http.progress import Event, events_of
from sdxl_bento.protocols.native.answers import answer_json
from sdxl_bento.serving.results import Progress


async def stream(api: API, call: Call) -> Response:
    """The answer to /generate/stream. What fails before the first event still gets a status."""
    events = events_of(api, call, "generate")
    first = await anext(events)
    if isinstance(first, Exception):
        await events.aclose()
        return error_response(logged(first, call.request_id), call.request_id)
    return event_stream(_written(first, events, call), call.request_id)


async def _written(first: Event, events: AsyncGenerator[Event], call: Call) -> AsyncIterator[bytes]:
    async with aclosing(events):
        for each in await _written_one(first, call):
            yield each
        async for later in events:
            for each in await _written_one(later, call):
                yield each


async def _written_one(what: Event, call: Call) -> list[bytes]:
    if what is None:
        return [KEEP_ALIVE]
    if isinstance(what, Progress):
        return await _progress_events(what)
    if isinstance(what, Answer):
        return [event("done", answer_json(what))]
    body = error_body(logged(what, call.request_id), call.request_id)
    return [event("error", {"error": body["error"] | {"status": int(status_of(what))}})]


async def _progress_events(step: Progress) -> list[bytes]:
    which = {"request_id": step.request_id, "index": step.index, "stage": step.stage}
    if step.stage == "queued":
        return [event("queued", which | {"position": step.position})]
    events = [event("step", which | {"step": step.step, "steps": step.steps})]
    if step.preview is not None:
        jpeg = await asyncio.to_thread(encode, step.preview, "jpeg", quality=80)
        events.append(event("preview", which | {"step": step.step, "jpeg": base64_of(jpeg)}))
    return events
