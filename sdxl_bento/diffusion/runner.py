"""The data plane: runs one batch of one stage of one model. The engine's `Executor`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from sdxl_bento.diffusion import preview
from sdxl_bento.diffusion.backend import Backend, Mix, UNetInputs
from sdxl_bento.diffusion.conditioning import Conditioner, Conditioning
from sdxl_bento.diffusion.images import from_pixels, to_pixels
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.memory import out_of_memory_typed
from sdxl_bento.diffusion.model import Model
from sdxl_bento.diffusion.plan import Job
from sdxl_bento.diffusion.solvers import fused_update
from sdxl_bento.diffusion.state import LatentState
from sdxl_bento.diffusion.transfer import to_device, to_host
from sdxl_bento.engine.executor import Completion, DeviceOutOfMemory
from sdxl_bento.engine.request import Request, Stage, Unit
from sdxl_bento.errors import NumericalError, SDXLError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Served:
    """One loaded model with what runs it."""

    model: Model
    backend: Backend
    adapters: LoraPool
    conditioner: Conditioner


@dataclass
class _Launched:
    """A unit that the device may still be busy with."""

    unit: Unit
    begin: float
    end: float = 0.0
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    # In host memory, to be read once the unit is done:
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)  # [H, W, 3] uint8
    finite: dict[str, torch.Tensor] = field(default_factory=dict)  # [] bool
    previews: dict[str, torch.Tensor] = field(default_factory=dict)  # [h, w, 3] uint8

    def is_done(self) -> bool:
        return self.events is None or bool(self.events[1].query())  # type: ignore[no-untyped-call]

    def wait(self) -> float:
        """Wait for the device; the seconds it took."""
        if self.events is None:
            return self.end - self.begin
        self.events[1].synchronize()
        return float(self.events[0].elapsed_time(self.events[1])) / 1e3


class Runner:
    """Latent states by request id, and the forwards of every stage.

    Nothing of a request changes before its forward has succeeded, so a unit that did not fit
    can simply be run again in parts.
    """

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models
        self._states: dict[str, LatentState] = {}
        self._in_use: dict[str, Request] = {}
        self._pending: deque[_Launched] = deque()
        self._stages: Mapping[Stage, Callable[[Served, Unit, _Launched], None]] = {
            Stage.ENCODE: self._encode,
            Stage.IMAGE: self._image,
            Stage.BASE: self._denoise,
            Stage.REFINE: self._denoise,
            Stage.DECODE: self._decode,
        }

    def ready(self, request: Request) -> bool:
        return self._has_adapters(request) or _job(request).params.lora_late_ok

    def launch(self, unit: Unit) -> None:
        served = self._models[unit.key.model]
        launched = _Launched(unit, time.perf_counter())
        cuda = served.model.placement.device.type == "cuda"
        try:
            with torch.inference_mode(), out_of_memory_typed():
                if cuda:
                    launched.events = _timing_events()
                    launched.events[0].record()
                self._stages[unit.key.stage](served, unit, launched)
                if launched.events is not None:
                    launched.events[1].record()
        except DeviceOutOfMemory:
            if cuda:
                torch.cuda.empty_cache()
            raise
        launched.end = time.perf_counter()
        self._pending.append(launched)

    def collect(self, max_in_flight: int) -> Iterable[Completion]:
        while self._pending:
            oldest = self._pending[0]
            if not oldest.is_done() and len(self._pending) <= max_in_flight:
                return
            self._pending.popleft()
            yield self._complete(oldest)

    def release(self, request: Request) -> None:
        self._states.pop(request.id, None)
        if self._in_use.pop(request.id, None) is not None:
            names = [name for name, _ in _job(request).mix]
            self._models[request.model].adapters.release(names)

    def _has_adapters(self, request: Request) -> bool:
        """Whether its adapters are loaded; from then on they stay until it ends."""
        names = [name for name, _ in _job(request).mix]
        if not names or request.id in self._in_use:
            return True
        adapters = self._models[request.model].adapters
        if not adapters.ready(names):
            return False
        adapters.use(names)
        self._in_use[request.id] = request
        return True

    def _mix(self, request: Request, stage: Stage) -> Mix:
        """The adapters of a request's rows; none yet while they load, if it asked for that."""
        base = stage is Stage.BASE
        return _job(request).mix if base and self._has_adapters(request) else ()

    def _encode(self, served: Served, unit: Unit, launched: _Launched) -> None:
        jobs = [_job(request) for request in unit.requests]
        mixes = [self._mix(request, Stage.BASE) for request in unit.requests]
        conditionings = served.conditioner.condition(jobs, mixes)
        for request, job, conditioning in zip(unit.requests, jobs, conditionings, strict=True):
            self._states[request.id] = LatentState(job, served.model, conditioning)

    def _image(self, served: Served, unit: Unit, launched: _Launched) -> None:
        states = [self._states[request.id] for request in unit.requests]
        posteriors = []
        for state in states:
            vae = served.model.pipeline(state.job.stages[0]).vae
            image = state.job.order.image
            assert image is not None  # the phase IMAGE is planned where there is one
            pixels = to_pixels(image, unit.key.width, unit.key.height)
            pixels = to_device(pixels.to(vae.dtype), served.model.placement.device)
            posteriors.append(vae.encode(pixels).latent_dist)
        for state, posterior in zip(states, posteriors, strict=True):
            rescale = partial(served.model.rescale, state.job.stages[0])
            state.start_from(posterior.mean, posterior.std, rescale)

    def _denoise(self, served: Served, unit: Unit, launched: _Launched) -> None:
        stage = unit.key.stage
        states = [self._states[request.id] for request in unit.requests]
        steps = list(zip(states, unit.steps, strict=True))
        table = torch.stack([state.tables[stage][step] for state, step in steps])
        latents = torch.cat([state.latents for state in states])
        noise = torch.cat([state.noise(stage, step) for state, step in steps])
        # Where a stage begins its first coefficient row ignores history, whatever it holds.
        previous = torch.cat([state.previous for state in states])
        rows = [state.job.rows for state in states]
        mixes = [self._mix(request, stage) for request in unit.requests]
        inputs = _unet_inputs(served.model, states, stage, latents, table, rows, mixes)
        prediction = served.backend.denoise(stage, inputs).float()
        guided = _guide(prediction, states, rows)
        latents, denoised = fused_update(latents, guided, previous, noise, table[:, :6])
        for i, state in enumerate(states):
            state.step_done(latents[i : i + 1], denoised[i : i + 1])
        for request, state in zip(unit.requests, states, strict=True):
            if state.job.wants_preview:
                rgb = preview.to_rgb(state.previous, served.model)
                launched.previews[request.id] = to_host(rgb)

    def _decode(self, served: Served, unit: Unit, launched: _Launched) -> None:
        states = {request.id: self._states[request.id] for request in unit.requests}
        for stage in {state.job.last_stage: None for state in states.values()}:
            mine = [name for name, state in states.items() if state.job.last_stage is stage]
            latents = torch.cat([states[name].latents for name in mine])
            pixels = to_host(from_pixels(served.backend.decode(stage, latents)))
            finite = to_host(torch.isfinite(latents).flatten(1).all(1))
            launched.pixels.update(zip(mine, pixels, strict=True))
            launched.finite.update(zip(mine, finite, strict=True))

    def _complete(self, launched: _Launched) -> Completion:
        seconds = launched.wait()
        results: dict[str, Image] = {}
        failures: dict[str, SDXLError] = {}
        for name, pixels in launched.pixels.items():
            if launched.finite[name]:
                results[name] = preview.to_image(pixels)
            else:
                failures[name] = _not_finite(launched.unit, name)
        previews = {name: preview.to_image(rgb) for name, rgb in launched.previews.items()}
        return Completion(launched.unit, seconds, failures, results, previews)


def _timing_events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    make: Callable[..., torch.cuda.Event] = torch.cuda.Event
    return make(enable_timing=True), make(enable_timing=True)


def _not_finite(unit: Unit, request_id: str) -> NumericalError:
    """What to tell of a picture that is no picture. Its adapters are the likeliest cause."""
    request = next(each for each in unit.requests if each.id == request_id)
    names = [name for name, _ in _job(request).mix]
    advice = "try another dtype (SDXL_DTYPE=bf16), a lower guidance_scale, or other LoRA scales"
    used = f", drawn with the LoRA {', '.join(names)}" if names else ""
    return NumericalError(f"the latents hold NaN or infinity{used}; {advice}")


def _job(request: Request) -> Job:
    assert isinstance(request.payload, Job)
    return request.payload


def _unet_inputs(
    model: Model,
    states: list[LatentState],
    stage: Stage,
    latents: torch.Tensor,
    table: torch.Tensor,
    rows: list[int],
    mixes: list[Mix],
) -> UNetInputs:
    """Spread B requests over R rows: one, or two where there is guidance."""
    scaled = (latents * table[:, 6, None, None, None]).to(model.placement.dtype)
    spread = [i for i, count in enumerate(rows) for _ in range(count)]
    return UNetInputs(
        sample=torch.cat([scaled[i : i + 1] for i in spread]),
        timestep=torch.cat([table[i : i + 1, 7] for i in spread]),
        **Conditioning.joined([state.conditioning[stage] for state in states]),
        mixes=[mixes[i] for i in spread],
    )


def _guide(prediction: torch.Tensor, states: list[LatentState], rows: list[int]) -> torch.Tensor:
    """[R, 4, h, w] -> [B, 4, h, w] by classifier-free guidance (arXiv 2207.12598).

    A request without guidance has one row, which is then both branches.
    """
    if max(rows) == 1:
        return prediction
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    positive = torch.cat([prediction[end - 1 : end] for end in ends])
    negative = torch.cat(
        [prediction[end - n : end - n + 1] for end, n in zip(ends, rows, strict=True)]
    )
    scale = torch.cat([state.guidance for state in states])[:, None, None, None]
    guided = negative + scale * (positive - negative)
    if not any(state.job.params.guidance_rescale for state in states):
        return guided
    amount = torch.cat([state.guidance_rescale for state in states])[:, None, None, None]
    return _rescale(guided, positive, amount)


def _rescale(guided: torch.Tensor, positive: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pull the guided prediction's spread towards the conditional one's (arXiv 2305.08891, 3.4)."""
    dims = (1, 2, 3)
    rescaled = guided * (positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return torch.where(amount > 0, amount * rescaled + (1 - amount) * guided, guided)
