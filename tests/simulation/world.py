"""A simulated world: traffic, an engine that serves it, and an auditor of its units."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.fake import FakeClock, FakeExecutor, Faults, expected_result
from sdxl_bento.engine.request import BatchKey, Phase, Request, Stage, Status, Unit
from sdxl_bento.engine.scheduler import PROBE_S, Limits
from sdxl_bento.errors import DeadlineInfeasible, Refused

SIZES = (512, 768, 1024)
MODELS = ("base-a", "base-b")


@dataclass(frozen=True)
class Arrival:
    """A request that will be submitted `at`, and perhaps cancelled `cancel_after` seconds later."""

    id: str
    at: float
    phases: tuple[Phase, ...]
    model: str = MODELS[0]
    size: int = 1024
    slo: float | None = None
    priority: int = 0
    cancel_after: float | None = None

    def request(self) -> Request:
        deadline = None if self.slo is None else self.at + self.slo
        return Request(
            self.id, self.model, self.size, self.size, self.phases, None, self.at, deadline,
            self.priority,
        )  # fmt: skip


def way(steps: int, rows: int = 2, refine: int = 0, image: bool = False) -> tuple[Phase, ...]:
    """The phases of a picture."""
    return (
        Phase(Stage.ENCODE, 1, rows),
        *([Phase(Stage.IMAGE, 1, 1)] if image else []),
        Phase(Stage.BASE, steps, rows),
        *([Phase(Stage.REFINE, refine, rows)] if refine else []),
        Phase(Stage.DECODE, 1, 1),
    )


class Auditor(FakeExecutor):
    """A fake executor that looks at every unit it is given and keeps what is wrong with it."""

    engine: Engine

    def __init__(self, clock: FakeClock, faults: Faults | None = None) -> None:
        super().__init__(clock, faults=faults)
        self.wrong: list[str] = []
        self.refused_rows: dict[BatchKey, list[tuple[float, int]]] = {}  # when, how many
        self._last_was_short = False

    def launch(self, unit: Unit) -> None:
        self._audit(unit)
        self._last_was_short = not unit.key.stage.denoises
        try:
            super().launch(unit)
        except MemoryError:
            raise
        except Exception as error:
            if type(error).__name__ == "DeviceOutOfMemory":
                refused = self.refused_rows.setdefault(unit.key, [])
                refused.append((self.clock.now, unit.rows))
            raise

    def _audit(self, unit: Unit) -> None:
        limits, running = self.engine.scheduler.limits, self.engine.scheduler.running
        several = len(unit.requests) > 1
        if several and unit.rows > limits.max_rows:
            self.wrong.append(f"{unit.rows} rows")
        if several and unit.rows * unit.key.height * unit.key.width > limits.max_pixels:
            self.wrong.append(f"{unit.rows} rows of {unit.key}")
        for at, rows in self.refused_rows.get(unit.key, []):
            if several and unit.rows >= rows and self.clock.now < at + PROBE_S:
                self.wrong.append(f"{unit.rows} rows did not fit just before")
        if sum(request.deadline is None for request in running.values()) > limits.max_running:
            self.wrong.append(f"{len(running)} run")
        for request in unit.requests:
            if request.key != unit.key or request.has_ended or request.cancelling:
                self.wrong.append(f"{request.id} has no place in {unit.key}")
        if len(set(unit.requests)) != len(unit.requests):
            self.wrong.append("a request twice in a unit")
        if not unit.key.stage.denoises and self._last_was_short:
            for request in running.values():
                if not request.launched_all and request.stage.denoises and self.can_run(request):
                    self.wrong.append("two short units in a row while steps wait")

    def can_run(self, request: Request) -> bool:
        if request.id in self.faults.unfit:
            return False
        return self.ready(request)


@dataclass
class World:
    """Runs traffic through an engine, in simulated time."""

    limits: Limits = field(default_factory=Limits)
    queue: QueueLimits = field(default_factory=lambda: QueueLimits(10**9, 10**18))
    faults: Faults = field(default_factory=Faults)
    know_costs: bool = False

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.executor = Auditor(self.clock, self.faults)
        cost = accurate_costs(self.executor, self.limits.max_rows) if self.know_costs else None
        self.engine = Engine(self.executor, self.limits, self.queue, self.clock, cost)
        self.executor.engine = self.engine
        self.requests: dict[str, Request] = {}
        self.refused: dict[str, Refused] = {}
        self.ends: Counter[str] = Counter()

    def run(self, arrivals: Iterable[Arrival]) -> World:
        """Until everything has ended."""
        order = count()
        events: list[tuple[float, int, str, Arrival]] = []
        coming = iter(sorted(arrivals, key=lambda arrival: arrival.at))
        upcoming = next(coming, None)
        while True:
            while upcoming is not None and upcoming.at <= self.clock.now:
                self._submit(upcoming)
                if upcoming.cancel_after is not None:
                    at = self.clock.now + upcoming.cancel_after
                    heapq.heappush(events, (at, next(order), "cancel", upcoming))
                upcoming = next(coming, None)
            while events and events[0][0] <= self.clock.now:
                self._cancel(heapq.heappop(events)[3].id)
            if self.engine.step():
                continue
            times = [self.executor.next_load, events[0][0] if events else None]
            times.append(upcoming.at if upcoming is not None else None)
            known = [time for time in times if time is not None]
            if not known:
                return self
            self.clock.wait_until(min(known))

    def _submit(self, arrival: Arrival) -> None:
        request = arrival.request()
        if arrival.slo is not None:
            request.deadline = self.clock.now + arrival.slo
        request.on_end = self._count_end
        try:
            self.engine.submit(request)
        except Refused as error:
            self.refused[arrival.id] = error
        else:
            self.requests[arrival.id] = request

    def _count_end(self, request: Request) -> None:
        self.ends[request.id] += 1

    def _cancel(self, id_: str) -> None:
        request = self.requests.get(id_)
        if request is not None and not request.has_ended:
            self.engine.cancel(id_)
            self.engine.cancel(id_)  # twice does no harm

    def check(self) -> None:
        """The invariants that hold in every world."""
        assert self.executor.wrong == []
        scheduler = self.engine.scheduler
        assert not len(self.engine)
        assert not scheduler.waiting
        assert not scheduler.running
        assert not self.executor.latents
        assert self.ends == Counter(self.requests.keys())
        assert Counter(self.executor.released) == self.ends
        for request in self.requests.values():
            assert request.has_ended
            assert request.in_flight == 0
            self._check_end(request)

    def _check_end(self, request: Request) -> None:
        faulty = (
            request.id in self.faults.raises
            or request.id in self.faults.not_finite
            or request.id in self.faults.unfit
        )
        if request.status is Status.FINISHED:
            assert request.result == expected_result(request), request.id
        elif request.status is Status.CANCELLED:
            assert request.cancelling
        else:
            assert faulty or self.faults.fits is not None, f"{request.id}: {request.error!r}"

    @property
    def late(self) -> list[tuple[str, float]]:
        """Admitted requests that ended after their deadline, and by how many seconds."""
        return [
            (r.id, r.ended - r.deadline)
            for r in self.requests.values()
            if r.deadline is not None and r.ended is not None and r.ended > r.deadline + 1e-9
        ]

    @property
    def infeasible(self) -> dict[str, DeadlineInfeasible]:
        return {k: v for k, v in self.refused.items() if isinstance(v, DeadlineInfeasible)}


def accurate_costs(executor: FakeExecutor, max_rows: int) -> CostTable:
    """A table that knows what every unit of the fake takes."""
    cost = CostTable()
    keys = [BatchKey(m, Stage.ENCODE, 0, 0) for m in MODELS]
    keys += [
        BatchKey(m, s, size, size)
        for m in MODELS
        for s in Stage
        if s is not Stage.ENCODE
        for size in SIZES
    ]
    for key in keys:
        for rows in range(1, max_rows + 2):
            cost.observe(key, rows, executor.seconds(key, rows))
    return cost


def traffic(
    rng: random.Random,
    requests: int,
    rate: float,
    *,
    steps: tuple[int, ...] = (1, 2, 4, 8),
    slo_share: float = 0.3,
    slo: tuple[float, float] = (0.5, 20.0),
    cancel_share: float = 0.0,
    sizes: tuple[int, ...] = SIZES,
    models: tuple[str, ...] = MODELS,
    refine_share: float = 0.2,
    prefix: str = "r",
) -> Iterator[Arrival]:
    """A Poisson stream of mixed requests, `rate` a second."""
    at = 0.0
    for index in range(requests):
        at += rng.expovariate(rate)
        refine = rng.choice((1, 2, 3)) if rng.random() < refine_share else 0
        yield Arrival(
            id=f"{prefix}{index}",
            at=at,
            phases=way(rng.choice(steps), rng.choice((1, 2)), refine, rng.random() < 0.1),
            model=rng.choice(models),
            size=rng.choice(sizes),
            slo=rng.uniform(*slo) if rng.random() < slo_share else None,
            priority=rng.choice((-5, 0, 0, 0, 5)),
            cancel_after=rng.uniform(0, 5) if rng.random() < cancel_share else None,
        )
