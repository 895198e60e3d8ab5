"""A call of the page while it runs: snapshots of its progress, a few times a second."""

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
EVERY_S = 0.25  # between snapshots


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a call is.

    `stage`, `step`, `steps` and `position` are those of the picture that is furthest behind.
    `share` of all steps are done. `previews` are JPEGs, one for each picture, None before the
    first.
    """

    stage: str
    step: int
    steps: int
    position: int
    share: float
    previews: tuple[bytes | None, ...]


class Visitor:
    """Somebody at an open page. A call sees it as a client that may disconnect."""

    def __init__(self) -> None:
        self._left = asyncio.Event()

    def leave(self) -> None:
        """Disconnect, which cancels the call."""
        self._left.set()

    async def receive(self) -> Message:
        """An ASGI `receive` after the body: it returns once, when the visitor has left."""
        await self._left.wait()
        return {"type": "http.disconnect"}


@dataclass(eq=False)
class PageCall:
    """A call that runs. After `end()` it is `stopped`, which the page shows."""

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
        """A new call with native `fields`. It starts when it is followed."""
        visitor = Visitor()
        request_id = f"ui-{secrets.token_hex(8)}"
        call = Call(request_id, False, fields, Caller(visitor.receive), protocol=PROTOCOL)
        return cls(api, call, visitor, int(fields.get("num_images", 1)))

    def end(self) -> None:
        """Cancel the call."""
        self.stopped = True
        self.visitor.leave()

    async def follow(self, task: Task) -> AsyncGenerator[Snapshot | Answer | Exception]:
        """Run the call: snapshots, then its answer or its error.

        Closing the generator early cancels the call.
        """
        loop = asyncio.get_running_loop()

        def on_progress(step: Progress) -> None:  # may be called in the engine's thread
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
