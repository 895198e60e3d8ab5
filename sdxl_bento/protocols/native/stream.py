"""POST /generate/stream: a call's progress as server-sent events.

`queued` and `step` contain the picture's index and its progress, `preview` a JPEG of the picture so
far, `done` the JSON that /generate answers, and `error` the error that it answers. The last event
is a `done` or an `error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import Response

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.encode import base64_of, encode
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.errors import error_response, logged
from sdxl_bento.protocols.http.event_stream import KEEP_ALIVE, event, event_stream
from sdxl_bento.protocols.http.progress import Event, events_of
from sdxl_bento.protocols.native.answers import answer_json, error_json
from sdxl_bento.serving.results import Progress


async def stream(api: API, call: Call) -> Response:
    """The response to /generate/stream. An error before the first event has its own status."""
    events = events_of(api, call, "generate")
    first = await anext(events)
    if isinstance(first, Exception):
        await events.aclose()
        return error_response(logged(first, call.request_id), call.request_id)
    return event_stream(_stream(first, events, call), call.request_id)


async def _stream(first: Event, events: AsyncGenerator[Event], call: Call) -> AsyncIterator[bytes]:
    async with aclosing(events):
        for each in await _encoded(first, call):
            yield each
        async for later in events:
            for each in await _encoded(later, call):
                yield each


async def _encoded(item: Event, call: Call) -> list[bytes]:
    if item is None:
        return [KEEP_ALIVE]
    if isinstance(item, Progress):
        return await _progress_events(item)
    if isinstance(item, Answer):
        return [event("done", answer_json(item))]
    return [event("error", error_json(item, call.request_id))]


async def _progress_events(step: Progress) -> list[bytes]:
    place = {"request_id": step.request_id, "index": step.index, "stage": step.stage}
    if step.stage == "queued":
        return [event("queued", place | {"position": step.position})]
    events = [event("step", place | {"step": step.step, "steps": step.steps})]
    if step.preview is not None:
        jpeg = await asyncio.to_thread(encode, step.preview, "jpeg", quality=80)
        events.append(event("preview", place | {"step": step.step, "jpeg": base64_of(jpeg)}))
    return events
