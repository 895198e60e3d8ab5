"""One call of the page: run as every protocol's, and looked at a few times a second."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.types import Message

from sdxl_bento.order import Task
from sdxl_bento.pictures.encode import encode
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.caller import Caller
from sdxl_bento.protocols.http.progress import outcome
from sdxl_bento.serving.results import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.drawing import Answer
    from sdxl_bento.protocols.http.api import API

PROTOCOL = "ui"
EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a call is: the picture that is furthest behind, and previews (JPEG) of all."""

    stage: str
    step: int
    steps: int
    position: int
    share: float
    previews: tuple[bytes | None, ...]


class Visitor:
    """Somebody at an open page. To the call it is a client that may leave."""

    def __init__(self) -> None:
        self._left = asyncio.Event()

    def leave(self) -> None:
        """The page was closed: what it waits for is cancelled."""
        self._left.set()

    async def receive(self) -> Message:
        """As an ASGI server's `receive` with the body read: it tells of the end, once."""
        await self._left.wait()
        return {"type": "http.disconnect"}


@dataclass(eq=False)
class PageCall:
    """A call under way. `end()` ends it early, for its visitor to be told so."""

    api: API
    call: Call
    visitor: Visitor
    pictures: int
    latest: dict[int, Progress] = field(default_factory=dict)
    fresh: dict[int, Image] = field(default_factory=dict)
    previews: dict[int, bytes] = field(default_factory=dict)
    stopped: bool = False

    @classmethod
    def of(cls, api: API, fields: Mapping[str, Any]) -> PageCall:
        """A new call with native `fields`; nothing runs until it is followed."""
        visitor = Visitor()
        request_id = f"ui-{secrets.token_hex(8)}"
        call = Call(request_id, False, fields, Caller(visitor.receive), protocol=PROTOCOL)
        return cls(api, call, visitor, int(fields.get("num_images", 1)))

    def end(self) -> None:
        """Cancel the call."""
        self.stopped = True
        self.visitor.leave()

    async def follow(self, task: Task) -> AsyncGenerator[Snapshot | Answer | Exception]:
        """Run the call, which its answer or its error ends. To close it early ends the call."""
        loop = asyncio.get_running_loop()

        def on_progress(step: Progress) -> None:  # may come from the engine's thread
            loop.call_soon_threadsafe(self._note, step)

        running = asyncio.create_task(self.api.run(self.call, task, on_progress))
        shown: Snapshot | None = None
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=EVERY_S)
                snapshot = await self._snapshot()
                if snapshot != shown and not running.done():
                    shown = snapshot
                    yield snapshot
            yield outcome(running)
        finally:
            self.visitor.leave()
            if not running.done():
                running.cancel()

    def _note(self, step: Progress) -> None:
        self.latest[step.index] = step
        if step.preview is not None:
            self.fresh[step.index] = step.preview

    async def _snapshot(self) -> Snapshot:
        fresh, self.fresh = self.fresh, {}
        for index, image in fresh.items():
            self.previews[index] = await asyncio.to_thread(encode, image, "jpeg", quality=80)
        previews = tuple(self.previews.get(index) for index in range(self.pictures))
        if not self.latest:
            return Snapshot("", 0, 0, 0, 0.0, previews)
        last = min(self.latest.values(), key=lambda step: step.step)
        queued = last.stage == "queued"
        position = (
            self.api.generator.calls.position(self.call.request_id, last.index) if queued else 0
        )
        total = max(1, sum(step.steps for step in self.latest.values()))
        share = sum(step.step for step in self.latest.values()) / total
        stage = "" if queued else last.stage
        return Snapshot(stage, last.step, last.steps, position, share, previews)
