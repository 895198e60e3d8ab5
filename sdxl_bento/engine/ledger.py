"""What has been promised, and how much time each promise can spare.

A promise is a deadline that can still be met. Taken in order of their deadlines, each needs the
device for its own work after the work of all before it (the processor-demand test of
earliest-deadline-first scheduling):

    spare = time until the deadline - work due by then

Two uses: a newcomer is admitted if nobody's spare time would fall under zero, and a unit of
someone due later may run first if those due earlier can spare its time.

Requests of one batch key share forwards, so a promise may ride along in the batch of those due
before it. It then costs what its rows add to their forwards, and that slows them: it rides only
if they can spare that too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.request import BatchKey, Request

RESERVE = 0.1  # share of the device that no promise counts on: others have a claim to it
NEVER = float("inf")


class Ledger:
    """The promises at one instant, in order of their deadlines."""

    def __init__(
        self,
        cost: CostTable,
        row_limit: Callable[[BatchKey], int],
        promises: Iterable[Request],
        start: float,
    ) -> None:
        """`start`: when the device will be done with what it has been given."""
        self._cost = cost
        self._row_limit = row_limit
        self._open: dict[BatchKey, tuple[int, int]] = {}  # batch to ride in: rows, steps
        self.riders: set[str] = set()
        self._ids: list[str] = []
        self._deadlines: list[float] = []
        self._spare: list[float] = []
        self._least: list[float] = []  # of this promise and those due before it
        self.work = 0.0  # device seconds of all promises
        lent: list[float] = []
        for deadline, request in sorted(
            ((r.deadline, r) for r in promises if r.deadline is not None), key=lambda pair: pair[0]
        ):
            before = self._least[-1] if self._least else NEVER
            ride = self._add(request, before)
            spare = (deadline - start) * (1 - RESERVE) - self.work
            self._ids.append(request.id)
            self._deadlines.append(deadline)
            self._spare.append(spare)
            self._least.append(min(before - ride, spare))
            lent.append(ride)
        # A ride slows all who are due before the rider, not only the one just before.
        slowed = 0.0
        for i in range(len(lent) - 1, -1, -1):
            self._spare[i] -= slowed
            self._least[i] -= slowed
            slowed += lent[i]

    def spares(self) -> dict[str, float]:
        """Seconds that each promise can spare, by request id; under 0 where it would be late."""
        return dict(zip(self._ids, self._spare, strict=True))

    def spare_before(self, due: float) -> float:
        """Seconds that all promises due before `due` can spare."""
        index = bisect_left(self._deadlines, due)
        return self._least[index - 1] if index else NEVER

    def _add(self, request: Request, spare: float) -> float:
        """Count a promise's work; returns the part of it that slows the earlier ones."""
        slows = 0.0
        for key, steps, rows in request.left():
            alone = self._cost.unit(key, rows)
            self.work += steps * alone
            if not key.stage.denoises:
                continue
            others, shared = self._open.get(key, (0, 0))
            if not others or others + rows > self._row_limit(key):
                self._open[key] = (rows, steps)
                continue
            shared = min(shared, steps)
            adds = self._cost.unit(key, others + rows) - self._cost.unit(key, others)
            if slows + shared * adds > spare:
                self._open[key] = (rows, steps)
                continue
            slows += shared * adds
            self.work -= shared * (alone - adds)
            self.riders.add(request.id)
            self._open[key] = (others + rows, max(self._open[key][1], steps))
        return slows
