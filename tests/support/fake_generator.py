"""A generator that draws nothing, for tests of what is around it.

It reads these variables of the environment:

FAKE_LOAD_S   seconds until it is ready (0)
FAKE_RUN_S    seconds that each call takes (0); with "quick" in the prompt none, with "slow" tenfold
FAKE_LOAD_ERROR  if set, loading ends with this message
FAKE_DIE_AFTER   the engine dies with this many calls answered
FAKE_PREVIEWS    if set, each step brings a preview
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from PIL import Image

from sdxl_bento.config import Settings
from sdxl_bento.errors import (
    AdapterNotFound,
    DeadlineInfeasible,
    EngineDead,
    InvalidInput,
    NotReady,
    Overloaded,
    RequestCancelled,
    RequestNotFound,
)
from sdxl_bento.manifest import SizeLimits
from sdxl_bento.order import Order, Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.serving.calls import is_meant
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.registry import ModelRegistry
from sdxl_bento.serving.results import (
    CallWarning,
    GeneratedImage,
    Generation,
    LoraSummary,
    ModelSummary,
    Progress,
    Provenance,
    Timings,
    UnitDone,
)


class FakeLoaded(Loaded):
    """A loaded model of which there is only the summary."""

    @property
    def tag(self) -> str:
        return "fake:1"

    @property
    def size_limits(self) -> SizeLimits:
        return SizeLimits(multiple=8, min=64, max=4096)

    def summary(self, *, default: bool) -> ModelSummary:
        size = (64, 64, 8)
        return ModelSummary(
            "fake", self.tag, default, *size, True, "fp32", "fake", "cpu", self.load_seconds, 0.1
        )


class FakeModels(ModelRegistry):
    """The real look-up, over a faked model with one adapter."""

    def _pools(self) -> list[Any]:
        return []

    def adapters(self) -> list[LoraSummary]:
        return [LoraSummary("striped", ("fake",), 1000, False, False)]

    def defaults(self, name: str | None = None) -> ResolvedParams:
        size = {"width": 64, "height": 64}
        return ResolvedParams(prompt="", model="fake", sampler="euler", seed=0, **size)


class FakeGenerator:
    """The surface of `sdxl_bento.serving.generator.Generator`; pictures of one colour, by seed."""

    def __init__(self, settings: Settings, worker_index: int = 0) -> None:
        self.settings = settings
        self.state = "new"
        self.state_reason = ""
        self.models = FakeModels(lambda: self.state, settings.model_aliases)
        self.calls = self.activity = self
        self.answered = 0
        self.run_s = float(os.environ.get("FAKE_RUN_S", "0"))
        self.ended: dict[str, asyncio.Event] = {}

    def start(self) -> None:
        """Load in a thread, as the real one does."""
        self.state = "loading"
        threading.Thread(target=self.load, daemon=True).start()

    def load(self) -> None:
        time.sleep(float(os.environ.get("FAKE_LOAD_S", "0")))
        if reason := os.environ.get("FAKE_LOAD_ERROR"):
            self.state_reason, self.state = reason, "dead"
        else:
            nothing: Any = None
            self.models.publish({"fake": FakeLoaded("fake", "fake", nothing, nothing, None, 0.5)})
            self.state = "ready"

    async def stop(self) -> None:
        if self.state == "ready":
            self.state = "draining"
        deadline = time.monotonic() + self.settings.drain_s
        while self.ended and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.state = "stopped"
        for ended in self.ended.values():
            ended.set()

    async def draw(
        self,
        order: Resolved,
        *,
        request_id: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        skip: Collection[int] = (),
    ) -> Generation:
        params = order.params
        request_id = request_id or "made"
        begin = time.perf_counter()
        await self._run(request_id, on_progress, self._seconds(params.prompt))
        size, seed = (params.width, params.height), params.seed
        images = tuple(
            GeneratedImage(Image.new("RGB", size, ((seed + i) % 256, 9, 9)), seed + i, i)
            for i in range(params.num_images)
            if i not in skip
        )
        self.answered += 1
        if self.answered == int(os.environ.get("FAKE_DIE_AFTER", "-1")):
            self.state_reason, self.state = "the device is gone", "dead"
        total = time.perf_counter() - begin
        return Generation(request_id, order, images, Timings(0.001, 0.002, total, 0, 0.003, total))

    def _seconds(self, prompt: str) -> float:
        if "quick" in prompt:
            return 0
        return self.run_s * (10 if "slow" in prompt else 1)

    async def _run(
        self, request_id: str, on_progress: Callable[[Progress], None] | None, seconds: float
    ) -> None:
        ended = self.ended[request_id] = asyncio.Event()
        try:
            for step in range(4):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), seconds / 4 or 0.001)
                    if self.state == "stopped":
                        raise NotReady(self.state)
                    raise RequestCancelled("the request was cancelled")
                if on_progress is not None:
                    preview = Image.new("RGB", (8, 8)) if "FAKE_PREVIEWS" in os.environ else None
                    on_progress(Progress(request_id, 0, "base", step + 1, 4, preview=preview))
        finally:
            del self.ended[request_id]

    async def look_up_adapters(self, order: Order) -> None:
        await self.models.adapter_files.check([lora.name for lora in order.params.loras])

    def resolve(self, order: Order) -> Resolved:
        params, image = order.params, order.image
        if self.state == "dead":
            raise EngineDead(f"the engine has ended: {self.state_reason}")
        if self.state != "ready":
            raise NotReady(self.state)
        if params.prompt == "bug":
            raise RuntimeError("secret detail")
        if params.prompt == "full":
            raise Overloaded("the queue is full: 64 requests wait", 3.2)
        if params.prompt == "late":
            raise DeadlineInfeasible(1.0, 2.5, 1.5)
        model = self.models.get(params.model)
        for lora in params.loras:
            raise AdapterNotFound(lora.name, ["striped"])
        if params.width is not None and params.width % 8:
            raise InvalidInput("width", params.width, "a multiple of 8")
        size = image.size if image is not None else (params.width or 64, params.height or 64)
        filled = {
            "seed": params.seed if params.seed is not None else 7,
            "width": size[0],
            "height": size[1],
            "model": model.name,
            "sampler": params.sampler or "euler",
        }
        resolved = ResolvedParams.model_construct(**{**dict(params), **filled})
        return Resolved(order.task, resolved, order.pictures)

    def provenance(self, order: Resolved) -> Provenance:
        return Provenance("fake:1", "0" * 64, "fake", "fp32", "cpu", "0", (), ())

    def warnings(self, order: Resolved) -> tuple[CallWarning, ...]:
        """Of each field with a prompt, four words are read."""
        texts = (("prompt", order.params.prompt), ("negative_prompt", order.params.negative_prompt))
        return tuple(
            CallWarning("prompt_truncated", field, f'this is not read: "{" ".join(words[4:])}"')
            for field, words in ((field, (text or "").split()) for field, text in texts)
            if len(words) > 4 and "unread" in words
        )

    def cancel(self, request_id: str) -> None:
        meant = [ended for name, ended in self.ended.items() if is_meant(request_id, name)]
        if not meant:
            raise RequestNotFound(request_id)
        for ended in meant:
            ended.set()

    def units(self) -> list[UnitDone]:
        return []

    def stats(self) -> dict[str, object]:
        return {"running": len(self.ended), "waiting": 0}
