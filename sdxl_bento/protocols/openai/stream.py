"""OpenAI's image calls with `stream`: partial pictures and whole ones as server-sent events.

Until something has happened an error still is an answer with its status; afterwards it is an
event, which OpenAI's clients raise as `APIError`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Task
from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.encode import encode
from sdxl_bento.protocols.http.answers import base64_of
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.event_stream import KEEP_ALIVE, event, event_stream
from sdxl_bento.protocols.http.progress import Event, events_of
from sdxl_bento.protocols.openai.answers import failed, failed_event, usage
from sdxl_bento.protocols.openai.fields import Wish
from sdxl_bento.serving.results import Progress


@dataclass
class PartialImages:
    """Which previews become partial pictures: `most` of each picture, spread over its steps."""

    most: int
    shown: Counter[int] = field(default_factory=Counter)

    def index_of(self, step: Progress) -> int | None:
        """Place of this preview among the partial pictures, or None if it is not to be one."""
        index = self.shown[step.index]
        due = step.step * (self.most + 1) >= step.steps * (index + 1)
        if step.preview is None or index == self.most or not due:
            return None
        self.shown[step.index] += 1
        return index


async def stream(api: API, call: Call, task: Task, wish: Wish) -> Response:
    """The answer, once something has happened."""
    events = events_of(api, call, task)
    first = await anext(events)
    if isinstance(first, Exception):
        await events.aclose()
        return failed(first, call, wish.names)
    kind = "image_generation" if task == "generate" else "image_edit"
    return event_stream(_written(first, events, call, wish, kind), call.request_id)


async def _written(
    first: Event, events: AsyncGenerator[Event], call: Call, wish: Wish, kind: str
) -> AsyncIterator[bytes]:
    """The events as they are sent. `kind` is how their names begin."""
    partial = PartialImages(wish.partial_images)
    what = first
    async with aclosing(events):
        while True:
            if what is None:
                yield KEEP_ALIVE
            elif isinstance(what, Progress):
                index = partial.index_of(what)
                if index is not None:
                    yield await _partial_image(what, index, call, kind)
            elif isinstance(what, Answer):
                for each in _completed(what, kind):
                    yield each
                return
            else:
                yield event("error", failed_event(what, call, wish.names))
                return
            what = await anext(events)


async def _partial_image(step: Progress, index: int, call: Call, kind: str) -> bytes:
    assert isinstance(call.fields, dict)  # it runs
    assert step.preview is not None
    output_format: OutputFormat = call.fields.get("output_format", "png")
    data = await asyncio.to_thread(encode, step.preview, output_format)
    size = f"{step.preview.width}x{step.preview.height}"
    image = _image(f"{kind}.partial_image", data, output_format, size)
    image |= {"partial_image_index": index, "index": step.index}
    return event(image["type"], image)


def _completed(answer: Answer, kind: str) -> list[bytes]:
    events = []
    for index, picture in enumerate(answer.pictures):
        size = f"{picture.width}x{picture.height}"
        image = _image(f"{kind}.completed", picture.data, picture.output_format, size)
        image |= {"usage": usage(answer.order, [picture])}
        image |= {"index": index, "seed": picture.seed, "image_id": picture.image_id}
        events.append(event(image["type"], image))
    return events


def _image(name: str, data: bytes, output_format: OutputFormat, size: str) -> dict[str, Any]:
    return {
        "type": name,
        "b64_json": base64_of(data),
        "created_at": int(time.time()),
        "output_format": output_format,
        "size": size,
        "quality": "auto",
        "background": "opaque",
    }
