"""OpenAI's image calls with `stream`: partial and completed pictures as server-sent events.

An error before the first event is a response with its own status. A later one is an event, which
OpenAI's clients raise as `APIError`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.responses import Response

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Task
from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.encode import base64_of, encode
from sdxl_bento.protocols.http.answers import warnings_json
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.event_stream import KEEP_ALIVE, event, event_stream
from sdxl_bento.protocols.http.progress import Event, events_of
from sdxl_bento.protocols.openai.answers import (
    CompletedEvent,
    PartialImageEvent,
    PictureEvent,
    error_event,
    error_response,
    usage,
)
from sdxl_bento.protocols.openai.fields import AnswerOptions
from sdxl_bento.serving.results import Progress


@dataclass
class PartialImages:
    """Which previews are sent: `count` of each picture, spread over its steps."""

    count: int
    sent: Counter[int] = field(default_factory=Counter)

    def index_of(self, step: Progress) -> int | None:
        """The index of this preview among the partial pictures, None if it is not sent."""
        index = self.sent[step.index]
        due = step.step * (self.count + 1) >= step.steps * (index + 1)
        if step.preview is None or index == self.count or not due:
            return None
        self.sent[step.index] += 1
        return index


async def stream(api: API, call: Call, task: Task, options: AnswerOptions) -> Response:
    """The response, as soon as the call has made progress or has ended."""
    events = events_of(api, call, task)
    first = await anext(events)
    if isinstance(first, Exception):
        await events.aclose()
        return error_response(first, call)
    kind = "image_generation" if task == "generate" else "image_edit"
    return event_stream(_stream(first, events, call, options, kind), call.request_id)


async def _stream(
    first: Event, events: AsyncGenerator[Event], call: Call, options: AnswerOptions, kind: str
) -> AsyncIterator[bytes]:
    """The events as they are sent. Their names begin with `kind`."""
    partial = PartialImages(options.partial_images)
    item = first
    async with aclosing(events):
        while True:
            if item is None:
                yield KEEP_ALIVE
            elif isinstance(item, Progress):
                index = partial.index_of(item)
                if index is not None:
                    yield await _partial_image(item, index, call, kind)
            elif isinstance(item, Answer):
                for each in _completed(item, kind):
                    yield each
                return
            else:
                yield event("error", error_event(item, call))
                return
            item = await anext(events)


async def _partial_image(step: Progress, index: int, call: Call, kind: str) -> bytes:
    assert isinstance(call.fields, dict)  # a call that runs has fields
    assert step.preview is not None
    output_format: OutputFormat = call.fields.get("output_format", "png")
    data = await asyncio.to_thread(encode, step.preview, output_format)
    size = f"{step.preview.width}x{step.preview.height}"
    image: PartialImageEvent = {
        **_picture_event(f"{kind}.partial_image", data, output_format, size),
        "partial_image_index": index,
        "index": step.index,
    }
    return event(image["type"], image)


def _completed(answer: Answer, kind: str) -> list[bytes]:
    events = []
    for index, picture in enumerate(answer.pictures):
        size = f"{picture.width}x{picture.height}"
        image: CompletedEvent = {
            **_picture_event(f"{kind}.completed", picture.data, picture.output_format, size),  # type: ignore[typeddict-item]  # it has no warnings, and need not have any
            "usage": usage(answer.order, [picture]),
            "index": index,
            "seed": picture.seed,
            "image_id": picture.image_id,
        }
        if answer.warnings:
            image["warnings"] = warnings_json(answer)
        events.append(event(image["type"], image))
    return events


def _picture_event(name: str, data: bytes, output_format: OutputFormat, size: str) -> PictureEvent:
    return {
        "type": name,
        "b64_json": base64_of(data),
        "created_at": int(time.time()),
        "output_format": output_format,
        "size": size,
        "quality": "auto",
        "background": "opaque",
    }
