"""What has been promised, and how much time each promise can spare.

A promise is a deadline that can still be met. Taken in order of their deadlines, each needs the
device for its own work after the work of all before it (the processor-demand test of
earliest-deadline-first scheduling):

    spare = time until the deadline - work due by then

Two uses: a newcomer is admitted if nobody's spare time would fall under zero, and a unit of
someone due later may run first if those due earlier can spare its time.

Requests of one batch key share forwards, so a promise may ride along in the batch of those due
before it. It then costs what its rows add to their forwards, and that slows them: it rides only
if they can spare that too. A short unit may have to wait for a stranger's step, see
`scheduler`; that toll is part of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.request import DENOISING, BatchKey, Request

RESERVE = 0.1  # share of the device kept for requests without a deadline; no promise uses it
NEVER = float("inf")


@dataclass(slots=True)
class Ride:
    """The batch of one key that promises may still join."""

    rows: int
    steps: int  # of the request that has the most
    seconds: float  # of one forward
    limit: int  # rows


class Ledger:
    """The promises at one instant, in order of their deadlines."""

    def __init__(
        self,
        cost: CostTable,
        row_limit: Callable[[BatchKey], int],
        promises: Iterable[Request],
        start: float,
        toll: float = 0.0,
    ) -> None:
        """`promises` have deadlines.

        Args:
            start: when the device will be done with the units it has already been sent.
            toll: seconds of the longest step that may have to run between two short units.
        """
        self.work = 0.0  # device seconds of all promises
        self.riders: set[str] = set()
        self._cost = cost
        self._toll = toll
        self._row_limit = row_limit
        self._open: dict[BatchKey, Ride] = {}
        self._promises = sorted(promises, key=attrgetter("deadline"))
        self._place = {request.id: place for place, request in enumerate(self._promises)}
        self._spare: list[float] = []
        self._least: list[float] = []  # of this promise and those due before it
        rides: list[float] = []
        least = NEVER
        for request in self._promises:
            assert request.deadline is not None
            ride = self._add(request, least)
            spare = (request.deadline - start) * (1 - RESERVE) - self.work
            least = min(least - ride, spare)
            self._spare.append(spare)
            self._least.append(least)
            rides.append(ride)
        self._charge(rides)

    def holds(self, request: Request) -> bool:
        """Whether the request is one of the promises."""
        return request.id in self._place

    def spares(self) -> Iterator[tuple[Request, float]]:
        """Each promise and the seconds it can spare; under 0 where it would be late."""
        return zip(self._promises, self._spare, strict=True)

    def spare_of(self, request: Request) -> float:
        """Seconds that one promise can spare."""
        return self._spare[self._place[request.id]]

    def spare_for(self, request: Request) -> float:
        """Seconds that the promises due before the request can spare it; all, if it is none."""
        place = self._place.get(request.id, len(self._least))
        return self._least[place - 1] if place else NEVER

    def _add(self, request: Request, spare: float) -> float:
        """Count a promise's work; returns the part of it that slows the earlier ones."""
        slows = 0.0
        costs = self._cost.costs(request)
        for index in range(request.phase, len(request.phases)):
            stage, steps, rows = request.phases[index]
            alone = costs[index].seconds
            if index == request.phase:
                steps -= request.step
            self.work += steps * alone
            if stage not in DENOISING:
                self.work += self._toll
                continue
            key = request.keys[index]
            batch = self._open.get(key)
            if batch is None:
                self._open[key] = Ride(rows, steps, alone, self._row_limit(key))
                continue
            together = batch.rows + rows
            if together <= batch.limit:
                shared = min(batch.steps, steps)
                seconds = self._cost.unit(key, together)
                adds = seconds - batch.seconds
                if slows + shared * adds <= spare:
                    slows += shared * adds
                    self.work -= shared * (alone - adds)
                    self.riders.add(request.id)
                    batch.rows, batch.seconds = together, seconds
                    batch.steps = max(batch.steps, steps)
                    continue
            batch.rows, batch.steps, batch.seconds = rows, steps, alone
        return slows

    def _charge(self, rides: list[float]) -> None:
        """A ride slows every promise that is due before the rider's."""
        slowed = 0.0
        for place in reversed(range(len(rides))):
            self._spare[place] -= slowed
            self._least[place] -= slowed
            slowed += rides[place]
