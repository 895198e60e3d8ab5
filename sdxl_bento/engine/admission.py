"""Admission: a request that cannot be served in time is refused here, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.ledger import RESERVE
from sdxl_bento.engine.request import Fewer, Request
from sdxl_bento.engine.scheduler import Scheduler
from sdxl_bento.errors import DeadlineInfeasible, InvalidInput, Overloaded

MARGIN = 0.05  # share of the time to a deadline that is kept for what the cost table misses
MIN_RETRY_S = 1.0
TINY = 1e-6


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many requests may wait beyond `Limits.max_running`, and how many pixels they have."""

    max_requests: int = 64
    max_pixels: int = 256_000_000


class Admission:
    """Refuses requests, with the time after which a retry makes sense."""

    def __init__(self, cost: CostTable, limits: QueueLimits, scheduler: Scheduler) -> None:
        self.cost = cost
        self.limits = limits
        self.scheduler = scheduler

    def check(self, request: Request, now: float, busy: float) -> None:
        """Let the request pass or raise.

        Raises:
            Overloaded: the queue is full.
            DeadlineInfeasible: it, or one promised earlier, would miss its deadline.
        """
        self._check_queue(request)
        late = self.lateness(request, now, busy)
        if late > 0 and request.deadline is not None:
            slo = request.deadline - now
            # By then everything that is promised now will be done.
            done = busy + self.scheduler.ledger(now, busy).work / (1 - RESERVE)
            raise DeadlineInfeasible(slo, slo + late, max(done, MIN_RETRY_S))

    def lateness(self, request: Request, now: float, busy: float) -> float:
        """Seconds by which the request or an earlier promise would be late; 0 if none would."""
        if request.deadline is None:
            return 0.0
        before = self.scheduler.ledger(now, busy)
        after = self.scheduler.ledger(now, busy, request)
        late = 0.0
        for promise, spare in after.spares():
            margin = MARGIN * max((promise.deadline or now) - now, 0.0)
            # A promise that would be late without the newcomer too does not count against it.
            if promise is request or spare < before.spare_of(promise) - TINY:
                late = max(late, margin - spare)
        return late

    def shorten(self, request: Request, fewer: Fewer, now: float, busy: float) -> int | None:
        """Plan the request with the most steps that make its deadline; None if it needs no less.

        Where even `fewer.floor` is late, the request stays as it was.
        """
        if self.lateness(request, now, busy) <= 0:
            return None
        asked = request.phases, request.payload
        low, high, best = fewer.floor, fewer.asked - 1, None
        while low <= high:
            steps = (low + high) // 2
            try:
                phases, payload = fewer.plan(steps)
            except InvalidInput:  # so few steps that a stage would have none
                low = steps + 1
                continue
            request.plan(phases, payload)
            if self.lateness(request, now, busy) <= 0:
                low, best = steps + 1, (steps, phases, payload)
            else:
                high = steps - 1
        if best is None:
            request.plan(*asked)
            return None
        request.plan(*best[1:])
        return best[0]

    def _check_queue(self, request: Request) -> None:
        waiting, running = self.scheduler.waiting, self.scheduler.running
        queued = len(waiting) + len(running) - self.scheduler.limits.max_running
        if queued < 0:
            return
        # Those that will start as soon as the engine turns to them don't belong to the queue.
        starting = max(self.scheduler.limits.max_running - len(running), 0)
        pixels = sum(other.pixels for other in islice(waiting.values(), starting, None))
        if queued < self.limits.max_requests and pixels + request.pixels <= self.limits.max_pixels:
            return
        drain = min((self.cost.remaining(other) for other in running.values()), default=0.0)
        raise Overloaded(
            f"the queue is full: {queued} requests with {pixels / 1e6:.1f} megapixels wait",
            max(drain, MIN_RETRY_S),
        )
