"""The door: a request that cannot be served in time is refused here, never half way."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.request import Phase, Request
from sdxl_bento.errors import DeadlineInfeasible, Overloaded

MARGIN = 0.05  # share of the time allowed that is kept for what the cost table cannot see
MIN_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, by requests and by pixels."""

    max_requests: int = 64
    max_pixels: int = 256_000_000


class Admission:
    """Says no at the door, with the time after which a retry makes sense."""

    def __init__(self, cost: CostTable, limits: QueueLimits, batch_rows: int) -> None:
        self.cost = cost
        self.limits = limits
        self.batch_rows = batch_rows

    def check(
        self,
        request: Request,
        waiting: Collection[Request],
        running: Collection[Request],
        places: int,
        now: float,
    ) -> None:
        """Let the request pass or raise. `places`: requests that may start without waiting.

        Raises:
            Overloaded: the queue is full.
            DeadlineInfeasible: it, or one promised earlier, would miss its deadline.
        """
        self._check_queue(request, waiting, running, places)
        late = self.lateness(request, [*waiting, *running], now)
        if late > 0 and request.deadline is not None:
            slo = request.deadline - request.arrival
            raise DeadlineInfeasible(slo, slo + late, max(late, MIN_RETRY_S))

    def lateness(self, request: Request, others: Collection[Request], now: float) -> float:
        """Seconds by which the request, or an earlier promise, would be late; 0 if none.

        The processor-demand test of earliest-deadline-first scheduling: up to each deadline,
        the work due by then must fit into the time until then.
        """
        late = 0.0
        if request.deadline is not None:
            promised = request.deadline - MARGIN * (request.deadline - request.arrival)
            late = now + self.cost.remaining(request) - promised
        demand = 0.0
        mine = self._due(request)
        for other in sorted([*others, request], key=self._due):
            demand += self.cost.demand(other, self.batch_rows)
            if other.deadline is None or self._due(other) < mine:
                continue
            ends = now + demand
            if other is request:
                ends += MARGIN * (other.deadline - other.arrival)
            elif ends - self.cost.demand(request, self.batch_rows) > other.deadline:
                continue  # it was late without us
            late = max(late, ends - other.deadline)
        return max(late, 0.0)

    def degrade(
        self, request: Request, others: Collection[Request], floor: float, now: float
    ) -> tuple[Phase, ...] | None:
        """The request's phases with the fewest steps taken off that make it feasible.

        `floor`: the least share of the steps that must stay. None if even that is late.
        """
        whole = request.phases
        most = max(phase.steps for phase in whole)
        for steps in range(most, 0, -1):
            share = steps / most
            if share < floor:
                break
            request.phases = tuple(
                Phase(p.stage, max(1, round(p.steps * share)), p.rows) if p.stage.denoises else p
                for p in whole
            )
            request.costs = None
            if self.lateness(request, others, now) <= 0:
                return request.phases
        request.phases, request.costs = whole, None
        return None

    def _check_queue(
        self,
        request: Request,
        waiting: Collection[Request],
        running: Collection[Request],
        places: int,
    ) -> None:
        if len(waiting) < places:
            return
        queued = len(waiting) - places
        pixels = sum(other.pixels for other in waiting)
        if queued < self.limits.max_requests and pixels + request.pixels <= self.limits.max_pixels:
            return
        drain = min((self.cost.demand(r, self.batch_rows) for r in running), default=0.0)
        raise Overloaded(
            f"the queue is full: {queued} requests with {pixels / 1e6:.1f} megapixels wait",
            max(drain, MIN_RETRY_S),
        )

    @staticmethod
    def _due(request: Request) -> float:
        return request.deadline if request.deadline is not None else float("inf")
