"""One engine over one model, stepped by hand: what `benchmarks/gpu_engine.py` measures with."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdxl_bento.diffusion.plan import ModelFacts, plan, resolve
from sdxl_bento.diffusion.runner import Runner, Served
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.request import Request, Stage
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.order import Order
from sdxl_bento.params import GenerateParams

CROWD = 8
COUNTS = (1, 2, 4, 8)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cuStreamSynchronize")
MEANT = "cudaEventSynchronize"
RANGE = "denoise loop"
Results = dict[str, Any]


@dataclass
class Bench:
    """One engine over one model, stepped by hand. Collects what its units took."""

    served: Served
    facts: ModelFacts
    size: int
    steps: int
    device: torch.device
    units: list[tuple[float, Completion]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        limits = Limits(max_rows=2 * CROWD, max_pixels=2 * CROWD * self.size**2)
        runner = Runner({self.facts.name: self.served})
        self.engine = Engine(runner, limits, on_unit=self._note)

    def submit(self, count: int, steps: int) -> list[Request]:
        """So many requests with guidance; engine time begins with the next `step`."""
        found = []
        for _ in range(count):
            self.made += 1
            asked = GenerateParams(
                prompt=f"picture number {self.made}",
                num_inference_steps=steps,
                width=self.size,
                height=self.size,
                sampler="euler",
            )
            job = plan(resolve(Order("generate", asked), self.facts, seed=self.made), self.facts)
            name = str(self.made)
            phases = job.phases()
            found.append(Request(name, self.facts.name, self.size, self.size, phases, job))
            self.engine.submit(found[-1])
        return found

    def until(self, stage: Stage, step: int, request: Request) -> None:
        """Step until this unit of the request has been launched."""
        while not request.has_ended and not _has_launched(request, stage, step):
            self.engine.step()
        self.check(request)

    def drain(self) -> None:
        while self.engine.step():
            pass

    def check(self, request: Request) -> None:
        if request.error is not None:
            raise request.error

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _note(self, completion: Completion) -> None:
        self.units.append((time.perf_counter(), completion))


def warm_up(bench: Bench) -> None:
    """Choose kernels, fill allocators, and let the engine learn its times; check for NaN."""
    for count in COUNTS:
        requests = bench.submit(count, 2)
        bench.drain()
        for request in requests:
            bench.check(request)


def steps_per_second(bench: Bench, count: int) -> Results:
    """The middle of a run of `count` requests that start together: nothing but steps."""
    requests = bench.submit(count, bench.steps + 4)
    for request in requests:
        bench.until(Stage.BASE, 2, request)
    bench.units.clear()
    bench.until(Stage.BASE, bench.steps + 2, requests[-1])
    units = [(when, unit) for when, unit in bench.units if unit.unit.key.stage is Stage.BASE]
    bench.drain()
    for request in requests:
        bench.check(request)
    wall = units[-1][0] - units[0][0]
    device = sum(unit.seconds for _, unit in units[1:])
    made = sum(len(unit.unit.requests) for _, unit in units[1:])
    return {
        "steps_per_s": made / wall,
        "ms_per_unit": 1e3 * wall / (len(units) - 1),
        "rows": units[-1][1].unit.rows,
        "busy": min(device / wall, 1.0),
        "idle_ms_per_unit": max(1e3 * (wall - device) / (len(units) - 1), 0.0),
    }


def newcomer(bench: Bench) -> Results:
    """A request comes in the middle of eight others; all of its stages compete with theirs."""
    crowd = bench.submit(CROWD - 1, bench.steps + 4)
    bench.until(Stage.BASE, bench.steps // 2, crowd[-1])
    bench.units.clear()
    begin = time.perf_counter()
    [late] = bench.submit(1, 2)
    bench.until(Stage.BASE, 1, late)
    while not any(_has_step_of(unit, late) for _, unit in bench.units):
        bench.engine.step()
    first = next(i for i, (_, unit) in enumerate(bench.units) if _has_step_of(unit, late))
    before = [unit for _, unit in bench.units[:first] if unit.unit.key.stage is Stage.BASE]
    seconds = bench.units[first][0] - begin
    bench.drain()
    return {
        "others": CROWD - 1,
        "steps_of_others_before_its_first": len(before),
        "ms_until_its_first_step_is_done": 1e3 * seconds,
        "ms_of_their_step": 1e3 * sum(unit.seconds for unit in before) / max(len(before), 1),
    }


def profile(bench: Bench) -> Results:
    """Where the host waited for the device, and when a kernel ran, while eight denoise."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    steps = max(bench.steps // 2, 4)
    requests = bench.submit(CROWD, steps + 8)
    for request in requests:
        bench.until(Stage.BASE, 3, request)
    bench.units.clear()
    with torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function(RANGE):
            bench.until(Stage.BASE, 3 + steps, requests[-1])
        bench.synchronise()
    bench.drain()
    found = _inside(profiler.events())
    return {
        "steps": steps,
        "waits_per_step": {name: found["calls"][name] / steps for name in WAITS},
        "event_waits_per_step": found["calls"][MEANT] / steps,
        "launches_per_step": found["launches"] / steps,
        "pageable_copies_per_step": found["pageable"] / steps,
        "kernel_share": found["kernel_share"],
    }


def _inside(events: Any) -> Results:
    """Count what happened within the marked range: the profiler itself waits at its end."""
    marks = [event for event in events if event.name == RANGE and event.device_type.name == "CPU"]
    begin, end = marks[0].time_range.start, marks[0].time_range.end
    calls: Counter[str] = Counter()
    kernel_us, pageable = 0.0, 0
    for event in events:
        if not begin <= event.time_range.start <= end:
            continue
        if event.device_type.name == "CUDA" and event.name != RANGE:
            kernel_us += min(event.time_range.end, end) - event.time_range.start
            pageable += "Pageable" in event.name
        elif event.name.startswith("cu"):
            calls[event.name] += 1
    launches = sum(n for name, n in calls.items() if "Launch" in name)
    share = kernel_us / (end - begin) if kernel_us else None
    return {"calls": calls, "pageable": pageable, "launches": launches, "kernel_share": share}


def whole_life(bench: Bench) -> Results:
    """Waits that torch knows of, from the prompt to the picture, with the lines that cause them."""
    if bench.device.type != "cuda":
        return {"count": None, "places": {}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            bench.submit(2, 4)
            bench.drain()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught)
    return {"count": len(caught), "places": dict(places.most_common(10))}


def _has_launched(request: Request, stage: Stage, step: int) -> bool:
    """Whether step number `step` (from 0) of a stage has been launched."""
    if request.launched_all or request.stage is Stage.DECODE:
        return True
    return request.stage is stage and request.step > step


def _has_step_of(completion: Completion, request: Request) -> bool:
    unit = completion.unit
    return unit.key.stage is Stage.BASE and request in unit.requests
