"""An engine on a fake device, and requests for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.fake import FakeClock, FakeExecutor, Faults, UnitCost
from sdxl_bento.engine.request import Phase, Request, Stage, Unit
from sdxl_bento.engine.scheduler import Limits

# A step of a row takes 10 ms, whatever its company: what runs when is easily worked out.
COSTS = {stage: UnitCost(0.0, 0.01) for stage in Stage}
MEGAPIXEL = 1000  # side of a picture of 1e6 pixels


@dataclass
class Bench:
    """An engine whose units are written down as (stage, ids)."""

    limits: Limits = field(default_factory=Limits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.executor = FakeExecutor(self.clock, COSTS, self.faults)
        self.cost = CostTable()
        self.engine = Engine(self.executor, self.limits, self.queue, self.clock, self.cost)
        self.units: list[tuple[str, str]] = []
        launch = self.executor.launch

        def noted(unit: Unit) -> None:
            launch(unit)
            self.units.append((str(unit.key.stage), " ".join(r.id for r in unit.requests)))

        self.executor.launch = noted  # type: ignore[method-assign]

    def learn(self, request: Request) -> None:
        """Let the table know what the request's units take."""
        for key in request.keys:
            for rows in range(1, 33):
                self.cost.observe(key, rows, self.executor.seconds(key, rows))

    def request(
        self,
        id_: str,
        steps: int = 4,
        *,
        rows: int = 1,
        slo: float | None = None,
        model: str = "m",
        side: int = MEGAPIXEL,
        refine: int = 0,
        priority: int = 0,
    ) -> Request:
        phases = [Phase(Stage.ENCODE, 1, 1), Phase(Stage.BASE, steps, rows)]
        phases += [Phase(Stage.REFINE, refine, rows)] if refine else []
        request = Request(
            id_,
            model,
            side,
            side,
            (*phases, Phase(Stage.DECODE, 1, 1)),
            arrival=self.clock.now,
            deadline=None if slo is None else self.clock.now + slo,
            priority=priority,
        )
        self.learn(request)
        return request

    def submit(self, id_: str, steps: int = 4, **how: object) -> Request:
        request = self.request(id_, steps, **how)  # type: ignore[arg-type]
        self.engine.submit(request)
        return request

    def run(self) -> None:
        while self.engine.step():
            pass

    def run_units(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def order(self, stage: str) -> list[str]:
        """Who was in the units of a stage, in turn."""
        return [ids for kind, ids in self.units if kind == stage]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return Bench
