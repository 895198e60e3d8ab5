"""How long does the engine itself take for each step, beside the device's work?

While the device runs one unit, the engine must have chosen the next, or the device waits for
Python. A step of the engine is: end who was cancelled, choose a unit (`Scheduler.next`), hand it
over, take in what has completed. That is plain Python over two dicts, so it grows with the
number of requests and not with the size of the pictures.

The crowd is 80 requests, kept at that number: one that ends is replaced at once. Pictures of
three sizes, 10 to 50 steps, some with a refiner. Limits let 16 without a deadline run; the others
wait. Requests with a deadline do not wait in the queue, they begin at once, so there are more at
work, and all of them are counted in the ledger of promises at every step.

    without   16 run, 64 wait
    half      40 have deadlines and run, 16 others run, 24 wait
    all       80 have deadlines and run

The executor is the fake one, with times that scatter by a tenth, so that the cost table keeps
changing. Its own time is taken off the step's. `submit` is what the door costs a caller; the lock
is held meanwhile. `CPU` is the thread's processor time, which other processes do not add to.

    OMP_NUM_THREADS=1 python -m benchmarks.scheduler [--steps N] [--json PATH]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import aim, machine, number, show, show_aims
from benchmarks.stats import percentile
from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.fake import FakeClock, FakeExecutor
from sdxl_bento.engine.request import BatchKey, Phase, Request, Stage, Unit
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import DeadlineInfeasible

RUNNING, QUEUED = 16, 64
CROWDS = {"without": 0.0, "half": 0.5, "all": 1.0}  # share of requests with a deadline
SIZES = (512, 768, 1024)
SLO_S = (60.0, 400.0)
SCATTER = 0.1
WARM_UP = 500
AIM_MS = 0.5
Results = dict[str, Any]


class Stopwatch:
    """Wall and processor time of what runs in this thread, in seconds."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._begin = (0.0, 0.0)

    def start(self) -> None:
        self._begin = (time.perf_counter(), time.thread_time())

    def stop(self, wall_off: float = 0.0, cpu_off: float = 0.0) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        self.wall.append(wall - self._begin[0] - wall_off)
        self.cpu.append(cpu - self._begin[1] - cpu_off)

    def summary(self) -> Results:
        """In milliseconds."""
        return {
            f"{name}_{share}_ms": percentile(values, of) * 1e3
            for name, values in (("wall", self.wall), ("cpu", self.cpu))
            for share, of in (("median", 0.5), ("p99", 0.99))
        }


class TimedExecutor(FakeExecutor):
    """A fake whose times scatter, and which knows how long it took itself in the last step."""

    def __init__(self, clock: FakeClock, rng: random.Random) -> None:
        super().__init__(clock)
        self.own = Stopwatch()
        self.rows = 0  # of the last unit
        self._rng = rng

    def seconds(self, key: BatchKey, rows: int) -> float:
        return super().seconds(key, rows) * self._rng.uniform(1 - SCATTER, 1 + SCATTER)

    def launch(self, unit: Unit) -> None:
        self.own.start()
        self.rows = unit.rows
        super().launch(unit)
        self.own.stop()

    def collect(self, max_in_flight: int) -> Iterator[Completion]:
        self.own.start()
        completions = list(super().collect(max_in_flight))
        self.own.stop()
        return iter(completions)

    def take_own(self) -> tuple[float, float]:
        """Its own wall and processor time since it was last asked."""
        own = sum(self.own.wall), sum(self.own.cpu)
        self.own.wall.clear()
        self.own.cpu.clear()
        return own


class Crowd:
    """An engine with a constant number of requests, `share` of them with a deadline."""

    def __init__(self, share: float, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.clock = FakeClock()
        self.executor = TimedExecutor(self.clock, self.rng)
        self.engine = Engine(
            self.executor,
            Limits(max_running=RUNNING),
            QueueLimits(10**6, 10**15),
            self.clock,
        )
        self.submits = Stopwatch()
        self.submitted = 0
        self._ended: list[bool] = []  # who has ended: whether each had a deadline
        total = RUNNING + QUEUED
        bound = round(total * share)
        for index in range(total):
            self._submit(with_deadline=index < bound)

    def step(self) -> None:
        if not self.engine.step():
            raise SystemExit("the crowd has run dry")

    def refill(self) -> None:
        """Replace who has ended."""
        ended, self._ended = self._ended, []
        for with_deadline in ended:
            self._submit(with_deadline)

    def _submit(self, with_deadline: bool) -> None:
        """One more; draws another if it is refused."""
        while True:
            request = self._request(with_deadline)
            self.submits.start()
            try:
                self.engine.submit(request)
            except DeadlineInfeasible:
                continue
            finally:
                self.submits.stop()
            return

    def _request(self, with_deadline: bool) -> Request:
        rng = self.rng
        self.submitted += 1
        rows, size = rng.choice((1, 2)), rng.choice(SIZES)
        phases = [Phase(Stage.ENCODE, 1, rows), Phase(Stage.BASE, rng.randint(10, 50), rows)]
        if rng.random() < 0.2:
            phases.append(Phase(Stage.REFINE, rng.randint(2, 10), rows))
        phases.append(Phase(Stage.DECODE, 1, 1))
        return Request(
            f"r{self.submitted}",
            "sdxl",
            size,
            size,
            tuple(phases),
            deadline=self.clock.now + rng.uniform(*SLO_S) if with_deadline else None,
            priority=rng.choice((-1, 0, 0, 1)),
            on_end=self._note_end,
        )

    def _note_end(self, ended: Request) -> None:
        if ended.error is not None:
            raise SystemExit(f"{ended.id} has failed: {ended.error!r}")
        self._ended.append(ended.deadline is not None)


def measure(share: float, steps: int) -> Results:
    """Time `steps` steps of a crowd."""
    crowd = Crowd(share)
    for _ in range(WARM_UP):
        crowd.step()
        crowd.refill()
    crowd.submits = Stopwatch()
    whole, choosing = Stopwatch(), Stopwatch()
    scheduler = crowd.engine.scheduler
    choose = scheduler.next

    def timed(now: float, busy: float, ready: Callable[[Request], bool]) -> Unit | None:
        choosing.start()
        unit = choose(now, busy, ready)
        choosing.stop()
        return unit

    scheduler.next = timed  # type: ignore[method-assign]
    running = waiting = rows = 0
    for _ in range(steps):
        crowd.executor.take_own()
        whole.start()
        crowd.step()
        whole.stop(*crowd.executor.take_own())
        counts = crowd.engine.counts()
        running, waiting = running + counts["running"], waiting + counts["waiting"]
        rows += crowd.executor.rows
        crowd.refill()
    return {
        "running": round(running / steps),
        "waiting": round(waiting / steps),
        "rows_per_unit": rows / steps,
        "cost_epochs": crowd.engine.cost.epoch,
        "step": whole.summary(),
        "next": choosing.summary(),
        "submit": crowd.submits.summary(),
        "submits": len(crowd.submits.wall),
    }


def aims(crowds: Mapping[str, Any]) -> list[Results]:
    """What we set out to reach, and what was measured."""
    return [
        aim(f"ms a step, {name} deadlines, {word}", of["step"][figure], AIM_MS, at_least=False)
        for name, of in crowds.items()
        for word, figure in (("median", "wall_median_ms"), ("p99", "wall_p99_ms"))
    ]


def tell(console: Console, document: Mapping[str, Any]) -> None:
    """The tables."""
    header = ("deadlines", "running", "waiting", "what", "median", "p99", "CPU median", "CPU p99")
    figures = ("wall_median_ms", "wall_p99_ms", "cpu_median_ms", "cpu_p99_ms")
    rows = [
        (
            *((name, str(of["running"]), str(of["waiting"])) if part == "step" else ("", "", "")),
            part,
            *(number(of[part][figure], " ms") for figure in figures),
        )
        for name, of in document["crowds"].items()
        for part in ("step", "next", "submit")
    ]
    show(console, f"The engine's own time, {document['steps']} steps each", header, rows)
    show_aims(console, document["aims"])


def main() -> None:
    options = _options()
    document: Results = {"benchmark": "scheduler", "steps": options.steps, **machine()}
    document["crowds"] = {name: measure(of, options.steps) for name, of in CROWDS.items()}
    document["aims"] = aims(document["crowds"])
    tell(Console(highlight=False, width=100), document)
    line = json.dumps(_rounded(document))
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(of) for key, of in value.items()}
    return [_rounded(of) for of in value] if isinstance(value, list) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5000, help="measured, for each crowd")
    parser.add_argument("--json", type=Path, help="also write the JSON document there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
