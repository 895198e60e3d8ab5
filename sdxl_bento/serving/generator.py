"""The facade that every protocol adapter calls: parameters in, pictures out.

It owns the engine of this process. Adapters translate to and from `GenerateParams` and
`Generation`; they hold no logic of their own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdxl_bento.engine.async_engine import AsyncEngine, EngineState, StepDone
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.request import Fewer, Phase, Request, Stage
from sdxl_bento.errors import (
    AdapterNotFound,
    InvalidInput,
    ModelNotFound,
    NotReady,
    RequestNotFound,
)
from sdxl_bento.params import GenerateParams, SamplerName
from sdxl_bento.serving.results import (
    GeneratedImage,
    Generation,
    LoraSummary,
    ModelSummary,
    Progress,
    Provenance,
    Timings,
    UnitDone,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.diffusion.plan import Job
    from sdxl_bento.engine.executor import Completion
    from sdxl_bento.serving.loading import Loaded


__all__ = [
    "GeneratedImage",
    "Generation",
    "Generator",
    "LoraSummary",
    "ModelSummary",
    "Progress",
    "Provenance",
    "Timings",
    "UnitDone",
]


@dataclass
class _Call:
    """A call on its way: the engine's requests, one for each picture.

    `replan` makes the job of the first picture with another number of steps.
    """

    request_id: str
    job: Job
    replan: Callable[[int], Job]
    requests: dict[int, Request] = field(default_factory=dict)  # by the picture's index

    def fewer(self, index: int) -> Fewer | None:
        """Leave to take steps off picture `index`, if the caller gave it."""
        floor = self.job.params.degrade_min_steps
        if floor is None:
            return None

        def plan(steps: int) -> tuple[tuple[Phase, ...], object]:
            job = self.replan(steps).for_image(index)
            return job.phases(), job

        return Fewer(self.job.params.num_inference_steps, floor, plan)


class Generator:
    """Parameters in, pictures out. Light to make: `start` loads the models in a thread.

    `warm`: draw something before the first call, so that its time is that of all others. For a
    single call that is not worth its while.
    """

    def __init__(self, settings: Settings, worker_index: int = 0, *, warm: bool = True) -> None:
        self._settings = settings
        self._warm = warm
        self._worker_index = worker_index
        self._models: Mapping[str, Loaded] = {}
        self._calls: dict[str, _Call] = {}
        # Written by the engine's thread without a lock. Bounded, for whoever never asks.
        self._units: deque[UnitDone] = deque(maxlen=65_536)
        self._engine = AsyncEngine(self._build)
        self._after: Callable[[], None] = lambda: None

    @property
    def state(self) -> str:
        """`new`, `loading`, `ready`, `draining`, `stopped` or `dead`."""
        return str(self._engine.state)

    @property
    def state_reason(self) -> str:
        """Why the engine is dead; empty otherwise."""
        return self._engine.reason

    def start(self) -> None:
        """Begin to load the models; returns at once."""
        self._engine.start()

    async def stop(self) -> None:
        """Take no more calls, let the running ones end within `drain_s`, then stop."""
        await self._engine.stop(self._settings.drain_s)
        self._after()

    async def generate(
        self,
        params: GenerateParams,
        *,
        image: Image | None = None,
        request_id: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        skip: Collection[int] = (),
    ) -> Generation:
        """Draw `params.num_images` pictures; from `image` if it is given.

        Cancelling the awaiting task cancels the pictures. `on_progress` is called in the event
        loop, and brings previews. Pictures whose index is in `skip` are not drawn.

        Raises:
            InvalidInput, NotFound, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        return await self._run(params, image, request_id, on_progress, skip, refine_only=False)

    async def refine(
        self,
        params: GenerateParams,
        *,
        image: Image,
        request_id: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        skip: Collection[int] = (),
    ) -> Generation:
        """Let the refiner redraw `image` by `params.strength`. Otherwise as `generate`."""
        return await self._run(params, image, request_id, on_progress, skip, refine_only=True)

    def resolved(self, params: GenerateParams, image: Image | None = None) -> GenerateParams:
        """The parameters as they would be drawn with, every default filled in.

        Raises:
            InvalidInput, NotFound, NotReady: see `errors`.
        """
        return self._resolve(params, image)[1]

    def provenance(self, params: GenerateParams) -> Provenance:
        """What draws with these parameters. May read adapters' files: call it from a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        from sdxl_bento.serving.provenance import provenance_of

        return provenance_of(self._model(params.model), params, self._settings)

    def cancel(self, request_id: str) -> None:
        """End a call; whoever awaits it gets RequestCancelled.

        Of several instances in one HTTP call, `id.0`, `id.1`, …, it is all if `id` is given.

        Raises:
            RequestNotFound: no call of that id is at work.
        """
        meant = [call for name, call in self._calls.items() if is_meant(request_id, name)]
        if not meant:
            raise RequestNotFound(request_id)
        for call in meant:
            for request in call.requests.values():
                self._engine.cancel(request.id)

    def position(self, request_id: str, index: int = 0) -> int:
        """Place in the queue of picture `index` of a call, from 1; 0 once it runs or has ended."""
        call = self._calls.get(request_id)
        request = call.requests.get(index) if call is not None else None
        return 0 if request is None else self._engine.position(request)

    def defaults(self, model: str | None = None) -> GenerateParams:
        """What a call gets that leaves everything out. Raises ModelNotFound, NotReady."""
        from sdxl_bento.diffusion.plan import resolve

        return resolve(GenerateParams(prompt=""), self._model(model).facts, 0)

    def models(self) -> list[ModelSummary]:
        """The loaded models, the default one first."""
        return [
            loaded.summary(default=index == 0) for index, loaded in enumerate(self._models.values())
        ]

    def model_name(self, asked: object) -> str | None:
        """The name of the loaded model that a caller means by `asked`, however wrong; or None."""
        loaded = self._find(asked)
        return loaded.name if loaded is not None else None

    def loras(self) -> list[LoraSummary]:
        """The adapters of all models, by name."""
        found: dict[str, LoraSummary] = {}
        for model in self._models.values():
            pool = model.served.adapters
            for name in pool.names():
                others = found[name].models if name in found else ()
                found[name] = LoraSummary(
                    name=name,
                    models=(*others, model.name),
                    size_bytes=pool.size_bytes(name),
                    loaded=pool.is_loaded(name) or (name in found and found[name].loaded),
                    pinned=pool.is_pinned(name),
                )
        return [found[name] for name in sorted(found)]

    def samplers(self) -> list[str]:
        """Names that `sampler` may take."""
        return list(SamplerName.__args__)  # type: ignore[attr-defined]  # a Literal's

    def stats(self) -> dict[str, object]:
        """How busy the engine is, in single pictures, and what its caches have done so far."""
        stats: dict[str, object] = {"state": self.state, "waiting": 0, "running": 0}
        if self._engine.state in (EngineState.READY, EngineState.DRAINING):
            stats.update(self._engine.counts())
        if self._models:
            served = [loaded.served for loaded in self._models.values()]
            pools = [each.adapters for each in served]
            cache = served[0].conditioner.cache  # all models share it
            stats["prompt_cache"] = {"hits": cache.hits, "misses": cache.misses}
            stats["loras"] = {
                "hits": sum(pool.hits for pool in pools),
                "loads": sum(pool.loads for pool in pools),
                "failures": sum(pool.failures for pool in pools),
            }
        return stats

    def units(self) -> list[UnitDone]:
        """What the engine has run since this was last asked, the oldest first."""
        return [self._units.popleft() for _ in range(len(self._units))]

    async def _run(
        self,
        params: GenerateParams,
        image: Image | None,
        request_id: str | None,
        on_progress: Callable[[Progress], None] | None,
        skip: Collection[int],
        *,
        refine_only: bool,
    ) -> Generation:
        engine = self._engine.engine  # raises unless it is ready
        call = self._plan(params, image, request_id, refine_only, on_progress is not None)
        if call.request_id in self._calls:
            raise InvalidInput("request_id", call.request_id, "an id that is not in use")
        slo = call.job.params.slo_ms
        now = engine.clock()
        for index in range(params.num_images):
            if index not in skip:
                job = call.job.for_image(index)
                call.requests[index] = to_request(f"{call.request_id}/{index}", job, now, slo)
        self._calls[call.request_id] = call
        try:
            results = await self._gather(call, on_progress)
        finally:
            del self._calls[call.request_id]
        return _generation(call, results)

    async def _gather(
        self, call: _Call, on_progress: Callable[[Progress], None] | None
    ) -> list[object]:
        """Run all pictures of a call; if one fails, so does the call, and the rest is cancelled."""
        tasks = [
            asyncio.ensure_future(
                self._engine.run(
                    request, _reporter(call.request_id, i, request, on_progress), call.fewer(i)
                )
            )
            for i, request in call.requests.items()
        ]
        try:
            if on_progress is not None:
                await asyncio.sleep(0)  # let them be submitted
                self._report_positions(call, on_progress)
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _report_positions(self, call: _Call, on_progress: Callable[[Progress], None]) -> None:
        for index, request in call.requests.items():
            position = self._engine.position(request)
            on_progress(Progress(call.request_id, index, "queued", 0, _steps(request), position))

    def _plan(
        self,
        params: GenerateParams,
        image: Image | None,
        request_id: str | None,
        refine_only: bool,
        wants_preview: bool,
    ) -> _Call:
        """Check the parameters against the model and the settings, and plan the stages."""
        from sdxl_bento.diffusion.plan import plan

        loaded, params = self._resolve(params, image)

        def replan(steps: int) -> Job:
            return plan(
                params.model_copy(update={"num_inference_steps": steps}),
                loaded.facts,
                image=image,
                refine_only=refine_only,
                wants_preview=wants_preview,
            )

        job = replan(params.num_inference_steps)
        return _Call(request_id or secrets.token_hex(8), job, replan)

    def _resolve(
        self, params: GenerateParams, image: Image | None
    ) -> tuple[Loaded, GenerateParams]:
        from sdxl_bento.diffusion.plan import resolve

        loaded = self._model(params.model)
        for name in (lora.name for lora in params.loras):
            if name not in loaded.served.adapters.names():
                raise AdapterNotFound(name, sorted(loaded.served.adapters.names()))
        if image is not None:
            params = _size_of(image, params, loaded.facts.manifest.size_limits.multiple)
        params = resolve(params, loaded.facts, secrets.randbits(32))
        self._check_bounds(params)
        return loaded, params

    def _model(self, name: str | None) -> Loaded:
        if not self._models:
            raise NotReady(self.state)
        loaded = self._find(name)
        if loaded is None:
            raise ModelNotFound(str(name), list(self._models))
        return loaded

    def _find(self, asked: object) -> Loaded | None:
        for loaded in self._models.values():
            if asked is None or asked in (loaded.name, loaded.asked, loaded.served.model.tag):
                return loaded
        return None

    def _check_bounds(self, params: GenerateParams) -> None:
        """What this server allows, which may be less than `GenerateParams` does."""
        settings = self._settings
        assert params.width is not None
        assert params.height is not None
        bounds = (
            ("num_inference_steps", params.num_inference_steps, settings.max_steps),
            ("num_images", params.num_images, settings.max_images),
            ("width x height", params.width * params.height, settings.max_pixels),
        )
        for name, value, most in bounds:
            if value > most:
                raise InvalidInput(name, value, f"at most {most} on this server")

    def _build(self, wake: Callable[[], None]) -> Engine:
        from sdxl_bento.serving.loading import load

        note = self._note
        engine, models, self._after = load(
            self._settings, self._worker_index, wake, note, warm=self._warm
        )
        self._models = models
        return engine

    def _note(self, completion: Completion) -> None:
        """Remember what was run, and nothing of whom it was run for. Not the warm-up."""
        if self._models:
            stage = completion.unit.key.stage
            self._units.append(UnitDone(stage, completion.unit.rows, completion.seconds))


def is_meant(request_id: str, name: str) -> bool:
    """Whether the call `name` is the one of that id, or an instance of it."""
    whole, dot, index = name.rpartition(".")
    return name == request_id or (dot == "." and whole == request_id and index.isdigit())


def to_request(request_id: str, job: Job, now: float, slo_ms: float | None) -> Request:
    """The engine's request for a job that arrives at `now`, in seconds of the engine's clock."""
    params = job.params
    assert params.model is not None
    assert params.width is not None
    assert params.height is not None
    return Request(
        id=request_id,
        model=params.model,
        height=params.height,
        width=params.width,
        phases=job.phases(),
        payload=job,
        arrival=now,
        deadline=None if slo_ms is None else now + slo_ms / 1e3,
        priority=params.priority,
    )


def _size_of(image: Image, params: GenerateParams, multiple: int) -> GenerateParams:
    """Image-to-image keeps the picture's size, to the next smaller multiple, unless told."""
    width = params.width or max(image.width // multiple, 1) * multiple
    height = params.height or max(image.height // multiple, 1) * multiple
    return params.model_copy(update={"width": width, "height": height})


def _steps(request: Request) -> int:
    return sum(phase.steps for phase in request.phases if phase.stage.denoises)


def _reporter(
    request_id: str, index: int, request: Request, on_progress: Callable[[Progress], None] | None
) -> Callable[[StepDone], None] | None:
    if on_progress is None:
        return None
    steps = _steps(request)
    base = _phase_steps(request.phases, Stage.BASE)

    def report(done: StepDone) -> None:
        step = {
            Stage.ENCODE: 0,
            Stage.IMAGE: 0,
            Stage.BASE: done.step,
            Stage.REFINE: base + done.step,
            Stage.DECODE: steps,
        }[done.stage]
        shown: Image | None = done.preview  # type: ignore[assignment]  # the runner's is a picture
        on_progress(Progress(request_id, index, str(done.stage), step, steps, 0, shown))

    return report


def _phase_steps(phases: tuple[Phase, ...], stage: Stage) -> int:
    return sum(phase.steps for phase in phases if phase.stage is stage)


def _generation(call: _Call, results: list[object]) -> Generation:
    images = tuple(
        GeneratedImage(
            image=result,  # type: ignore[arg-type]  # the runner's is a picture
            seed=call.job.seed + index,
            index=index,
            steps=_steps_made(request),
        )
        for (index, request), result in zip(call.requests.items(), results, strict=True)
    )
    requests = list(call.requests.values())
    first = min(request.started or request.arrival for request in requests)
    last = max(request.ended or request.arrival for request in requests)
    arrival = requests[0].arrival

    def spent(stage: Stage) -> float:
        return max(request.stage_s.get(stage, 0.0) for request in requests)

    timings = Timings(
        queue_s=first - arrival,
        encode_s=spent(Stage.ENCODE) + spent(Stage.IMAGE),
        base_s=spent(Stage.BASE),
        refine_s=spent(Stage.REFINE),
        decode_s=spent(Stage.DECODE),
        total_s=last - arrival,
    )
    # The parameters with the steps that were made, which may be fewer where that was allowed.
    steps = min(map(_steps_made, requests))
    params = call.job.params.model_copy(update={"num_inference_steps": steps})
    return Generation(call.request_id, params, images, timings)


def _steps_made(request: Request) -> int:
    job: Job = request.payload  # type: ignore[assignment]  # the facade's own
    return job.params.num_inference_steps
