"""Which rows run next.

Every request has a due time, and the earliest due time goes first. A request with a deadline is
due at its deadline, as long as it can still meet it. Any other request is due some time after its
arrival, in proportion to its work. So short requests go first, and no request waits for ever,
because later arrivals are due later.

Two rules change that order:

- Short units (encode, decode) go before denoising steps, because they let a new request join the
  batch and a finished one leave it; but never two in a row while steps wait.
- A unit may run before a request with an earlier deadline only if that request has the time to
  spare. The exception is a share of the device (`ledger.RESERVE`) that requests without a deadline
  are entitled to: what they did not get of it is owed to them, and paid as soon as it suffices for
  a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.ledger import RESERVE, Ledger
from sdxl_bento.engine.request import BatchKey, Request, Stage, Status, Unit

STRETCH = 4.0  # a request without a deadline may take about this many times its own work
GRACE = 0.1  # a deadline missed by more than this share of its time is no longer a promise
PRIORITY = 0.05  # one step of priority counts as much as this share of `ageing_s`
PROBE_S = 60.0  # after so long a batch that did not fit is tried again, doubled if it fails again
MAX_PROBE_S = 3600.0
MAX_DECODES = 4  # pictures decoded by one unit: more would hold up the steps behind it


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may share a forward, and how many requests without a deadline may have begun.

    Requests with a deadline begin at once; how many there may be is for `QueueLimits` to say.
    """

    max_rows: int = 16
    max_pixels: int = 16 * 1024 * 1024
    max_running: int = 32
    ageing_s: float = 30.0


@dataclass(slots=True)
class Learned:
    """A limit by rows that the device's memory has set, until it is worth asking for more."""

    rows: int
    wait: float
    until: float


class Scheduler:
    """Two containers, requests that wait and requests that run, and the choice among them."""

    def __init__(self, cost: CostTable, limits: Limits) -> None:
        self.cost = cost
        self.limits = limits
        self.waiting: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        self._learned_rows: dict[BatchKey, Learned] = {}
        self._last_was_short = False
        self._owed = 0.0  # device seconds owed to requests without a promise

    def add(self, request: Request) -> None:
        patience = min(self.limits.ageing_s, STRETCH * self.cost.remaining(request))
        request.turn = request.arrival + patience
        self.waiting[request.id] = request

    def remove(self, request: Request) -> None:
        self.waiting.pop(request.id, None)
        self.running.pop(request.id, None)

    def next(self, now: float, busy: float, ready: Callable[[Request], bool]) -> Unit | None:
        """The next unit of work, or None when nothing can run.

        Args:
            busy: seconds that the device still needs for the units in flight.
            ready: whether a request can run now.
        """
        self._probe(now)
        self._start_waiting(now)
        able = [r for r in self.running.values() if not r.launched_all and ready(r)]
        if not able:
            return None
        ledger = self.ledger(now, busy)
        able.sort(key=lambda request: self.urgency(request, ledger.holds(request)))
        lead = self._lead(able, ledger)
        batch = tuple(self._batch(lead, able, ledger))
        unit = Unit(lead.key, batch, tuple(request.step for request in batch))
        self._last_was_short = not lead.stage.denoises
        self._settle_debt(unit, able, ledger)
        return unit

    def promised(self, request: Request, now: float) -> bool:
        """Whether it has a deadline and can still meet it.

        One that cannot is not given time that would make others late too.
        """
        if request.deadline is None:
            return False
        grace = GRACE * (request.deadline - request.arrival)
        return request.deadline + grace - now >= self.cost.remaining(request)

    def urgency(self, request: Request, promised: bool) -> tuple[float, float]:
        """A sort key, the most urgent first: by due time, then by arrival."""
        due = request.deadline if promised and request.deadline is not None else request.turn
        return due - request.priority * PRIORITY * self.limits.ageing_s, request.arrival

    def ledger(self, now: float, busy: float, *newcomers: Request) -> Ledger:
        """The promises to the requests that run and wait, and to `newcomers` as if admitted."""
        promises, toll = [*newcomers], 0.0
        for group in (self.running.values(), self.waiting.values()):
            for request in group:
                if self.promised(request, now):
                    promises.append(request)
                elif not request.launched_all and request.stage.denoises:
                    toll = max(toll, self.cost.unit(request.key, request.rows))
        start = now + busy + self._owed
        return Ledger(self.cost, self.row_limit, promises, start, toll)

    def row_limit(self, key: BatchKey) -> int:
        """The most rows of one unit of `key`: by settings, pixels, and recent lack of memory."""
        limit = self.limits.max_rows
        if learned := self._learned_rows.get(key):
            limit = min(limit, learned.rows)
        if key.stage is Stage.DECODE:
            limit = min(limit, MAX_DECODES)
        if pixels := key.height * key.width:
            limit = min(limit, self.limits.max_pixels // pixels)
        return max(limit, 1)

    def halve(self, unit: Unit, now: float) -> None:
        """The unit did not fit the device: stay at half of it for a while, longer each time."""
        before = self._learned_rows.get(unit.key)
        wait = PROBE_S if before is None else min(2 * before.wait, MAX_PROBE_S)
        self._learned_rows[unit.key] = Learned(max(unit.rows // 2, 1), wait, now + wait)

    @property
    def places(self) -> int:
        """How many more requests without a deadline may begin."""
        taken = sum(request.deadline is None for request in self.running.values())
        return max(self.limits.max_running - taken, 0)

    def position(self, request: Request, now: float) -> int:
        """Place in the queue, from 1; 0 once it runs."""
        if request.id not in self.waiting:
            return 0
        queue = sorted(
            self.waiting.values(), key=lambda other: self.urgency(other, self.promised(other, now))
        )
        return 1 + queue.index(request)

    def _probe(self, now: float) -> None:
        """Double learned limits that are due to be tried again: memory may have become free."""
        for learned in self._learned_rows.values():
            if now >= learned.until and learned.rows < self.limits.max_rows:
                learned.rows, learned.until = 2 * learned.rows, now + learned.wait

    def _start_waiting(self, now: float) -> None:
        begins = [request for request in self.waiting.values() if request.deadline is not None]
        if places := self.places:
            others = [request for request in self.waiting.values() if request.deadline is None]
            others.sort(key=lambda request: self.urgency(request, promised=False))
            begins += others[:places]
        for request in begins:
            del self.waiting[request.id]
            request.status, request.started = Status.RUNNING, now
            self.running[request.id] = request

    def _lead(self, able: list[Request], ledger: Ledger) -> Request:
        """The request whose unit runs next. `able` is in order of urgency."""
        steps = [request for request in able if request.stage.denoises]
        short = [request for request in able if not request.stage.denoises]
        ranked = steps if steps and self._last_was_short else [*short, *steps]
        for request in ranked:
            seconds = self.cost.unit(request.key, request.rows)
            if seconds <= ledger.spare_for(request):
                return request
            if seconds <= self._owed and not ledger.holds(request):
                return request
        return steps[0] if ranked is steps else able[0]

    def _batch(self, lead: Request, able: list[Request], ledger: Ledger) -> Iterator[Request]:
        """The lead and, in order of urgency, those that fit into its forward."""
        yield lead
        if lead.alone:
            return
        key, rows, limit = lead.key, lead.rows, self.row_limit(lead.key)
        seconds = self.cost.unit(key, rows)
        extra, room = 0.0, ledger.spare_for(lead) - seconds
        for request in able:
            if request is lead or request.alone or request.key != key:
                continue
            if rows + request.rows > limit:
                continue
            longer = self.cost.unit(key, rows + request.rows)
            if request.id not in ledger.riders:  # a rider's time is in the ledger already
                slows = extra + longer - seconds
                if slows > min(room, ledger.spare_for(request)):
                    continue
                extra = slows
            rows, seconds = rows + request.rows, longer
            yield request

    def _settle_debt(self, unit: Unit, able: list[Request], ledger: Ledger) -> None:
        """Keep count of the device time owed to requests without a promise.

        Without it, a request whose single step is longer than any promise can spare would not run
        while promises keep coming: docs/adr/0009-due-time-and-a-ledger.md.
        """
        seconds = self.cost.unit(unit.key, unit.rows)
        if any(not ledger.holds(request) for request in unit.requests):
            self._owed = max(self._owed - seconds, 0.0)
        elif all(ledger.holds(request) for request in able):
            self._owed = 0.0
        else:
            self._owed += RESERVE * seconds
