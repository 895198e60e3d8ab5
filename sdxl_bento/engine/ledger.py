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

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.request import DENOISING, BatchKey, Request

RESERVE = 0.1  # share of the device that no promise counts on: others have a claim to it
NEVER = float("inf")
NOBODY = (0, 0)


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
            start: when the device will have done what it was given.
            toll: seconds of the longest step that may have to run between two short units.
        """
        self.work = 0.0  # device seconds of all promises
        self.riders: set[str] = set()
        self._cost = cost
        self._toll = toll
        self._row_limit = row_limit
        self._open: dict[BatchKey, tuple[int, int]] = {}  # batch to ride in: rows, steps
        self._promises = sorted(promises, key=_deadline)
        self._place = {request.id: place for place, request in enumerate(self._promises)}
        self._spare: list[float] = []
        self._least: list[float] = []  # of this promise and those due before it
        rides: list[float] = []
        for request in self._promises:
            least = self._least[-1] if self._least else NEVER
            ride = self._add(request, least)
            spare = (_deadline(request) - start) * (1 - RESERVE) - self.work
            self._spare.append(spare)
            self._least.append(min(least - ride, spare))
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
        self.work += self._cost.remaining(request)
        for index in range(request.phase, len(request.phases)):
            key, (stage, steps, rows) = request.keys[index], request.phases[index]
            if stage not in DENOISING:
                self.work += self._toll
                continue
            if index == request.phase:
                steps -= request.step
            others, longest = self._open.get(key, NOBODY)
            self._open[key] = (rows, steps)
            if not others or others + rows > self._row_limit(key):
                continue
            shared = min(longest, steps)
            alone = self._cost.costs(request)[index].seconds
            adds = self._cost.unit(key, others + rows) - self._cost.unit(key, others)
            if slows + shared * adds <= spare:
                slows += shared * adds
                self.work -= shared * (alone - adds)
                self.riders.add(request.id)
                self._open[key] = (others + rows, max(longest, steps))
        return slows

    def _charge(self, rides: list[float]) -> None:
        """A ride slows all who are due before the rider."""
        slowed = 0.0
        for place in reversed(range(len(rides))):
            self._spare[place] -= slowed
            self._least[place] -= slowed
            slowed += rides[place]


def _deadline(request: Request) -> float:
    return NEVER if request.deadline is None else request.deadline
