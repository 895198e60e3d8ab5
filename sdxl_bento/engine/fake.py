"""An executor without tensors: for testing schedulers and clients, in no time.

Time is a `FakeClock`, which moves only when somebody waits for the device. A unit takes
`fixed + per_row * rows * megapixels` seconds of it, by stage. A request's latents are a hash
over the steps it has made, so a step that is lost, doubled or out of order shows in its result.
Faults are injected by request id.

    clock = FakeClock()
    engine = Engine(FakeExecutor(clock), clock=clock)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from sdxl_bento.engine.executor import Completion, DeviceOutOfMemory
from sdxl_bento.engine.request import BatchKey, Request, Stage, Unit
from sdxl_bento.errors import NumericalError, SDXLError

MEGAPIXEL = 1e6


class FakeClock:
    """Seconds that pass only when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait_until(self, then: float) -> None:
        """Move forward to `then`; stay if it has passed."""
        self.now = max(self.now, then)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Seconds of a unit: `fixed`, and `per_row` for each row and megapixel."""

    fixed: float
    per_row: float


# About an H100 with full-size SDXL in half precision.
COSTS: Mapping[Stage, UnitCost] = {
    Stage.ENCODE: UnitCost(0.010, 0.002),
    Stage.IMAGE: UnitCost(0.005, 0.012),
    Stage.BASE: UnitCost(0.010, 0.009),
    Stage.REFINE: UnitCost(0.010, 0.008),
    Stage.DECODE: UnitCost(0.005, 0.020),
}


@dataclass
class Faults:
    """What goes wrong. Keys are request ids; a place is (stage, step)."""

    raises: Mapping[str, tuple[Stage, int]] = field(default_factory=dict)  # fails its whole batch
    not_finite: Mapping[str, tuple[Stage, int]] = field(default_factory=dict)
    loads: Mapping[str, float] = field(default_factory=dict)  # seconds until its adapter is there
    unfit: Mapping[str, SDXLError] = field(default_factory=dict)  # its adapter never will be
    fits: Callable[[BatchKey, int, float], bool] | None = None  # key, rows, now: enough memory?


class FakeExecutor:
    """Runs units in order, one at a time, as a device would.

    `units` counts the launched ones; `released` lists the ids of the requests let go.
    """

    def __init__(
        self,
        clock: FakeClock,
        costs: Mapping[Stage, UnitCost] = COSTS,
        faults: Faults | None = None,
    ) -> None:
        self.clock = clock
        self.costs = costs
        self.faults = faults or Faults()
        self.units = 0
        self.released: list[str] = []
        self.latents: dict[str, str] = {}
        self._loaded_at: dict[str, float] = {}
        self._queue: deque[tuple[float, Completion]] = deque()
        self._free_at = 0.0

    @property
    def next_load(self) -> float | None:
        """When the next adapter will be there; None if none is on its way."""
        return min((t for t in self._loaded_at.values() if t > self.clock.now), default=None)

    def seconds(self, key: BatchKey, rows: int) -> float:
        """What a unit takes."""
        cost = self.costs[key.stage]
        megapixels = key.height * key.width / MEGAPIXEL if key.height else 1.0
        return cost.fixed + cost.per_row * rows * megapixels

    def ready(self, request: Request) -> bool:
        if request.id in self.faults.unfit:
            raise self.faults.unfit[request.id]
        if request.id not in self.faults.loads:
            return True
        loaded_at = self._loaded_at.setdefault(
            request.id, self.clock.now + self.faults.loads[request.id]
        )
        return self.clock.now >= loaded_at

    def launch(self, unit: Unit) -> None:
        fits = self.faults.fits
        if fits is not None and not fits(unit.key, unit.rows, self.clock.now):
            raise DeviceOutOfMemory(f"{unit.rows} rows of {unit.key} do not fit")
        places = {r.id: (unit.key.stage, step) for r, step in self._steps(unit)}
        for id_, place in places.items():
            if self.faults.raises.get(id_) == place:
                raise RuntimeError(f"injected at {place}")
        for id_, (stage, step) in places.items():
            self.latents[id_] = advance(self.latents.get(id_, id_), stage, step)
        seconds = self.seconds(unit.key, unit.rows)
        self._free_at = max(self._free_at, self.clock.now) + seconds
        self.units += 1
        completion = Completion(
            unit,
            seconds,
            failures={
                id_: NumericalError(f"injected at {place}")
                for id_, place in places.items()
                if self.faults.not_finite.get(id_) == place
            },
            results={r.id: self.latents[r.id] for r, _ in self._steps(unit) if _is_last(r)},
        )
        self._queue.append((self._free_at, completion))

    def collect(self, max_in_flight: int) -> Iterator[Completion]:
        while self._queue and (
            len(self._queue) > max_in_flight or self._queue[0][0] <= self.clock.now
        ):
            ended, completion = self._queue.popleft()
            self.clock.wait_until(ended)
            yield completion

    def release(self, request: Request) -> None:
        self.latents.pop(request.id, None)
        self._loaded_at.pop(request.id, None)
        self.released.append(request.id)

    @staticmethod
    def _steps(unit: Unit) -> Iterator[tuple[Request, int]]:
        return zip(unit.requests, unit.steps, strict=True)


def advance(latents: str, stage: Stage, step: int) -> str:
    """The latents after one more step."""
    return blake2b(f"{latents} {stage} {step}".encode(), digest_size=8).hexdigest()


def expected_result(request: Request) -> str:
    """What the request must give, whatever its company."""
    latents = request.id
    for phase in request.phases:
        for step in range(phase.steps):
            latents = advance(latents, phase.stage, step)
    return latents


def _is_last(request: Request) -> bool:
    last = len(request.phases) - 1
    return request.phase == last and request.step == request.phases[last].steps - 1
