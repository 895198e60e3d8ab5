"""Which rows run next: the batch key whose most urgent request has the least slack.

    slack = due - now - work left

`due` is the request's deadline. One without a deadline, or that can no longer meet it, is due
some time after its arrival, in proportion to its work up to `ageing_s`: short ones first, and
everyone's turn comes, because later arrivals are due later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.request import BatchKey, Request, Stage, Status, Unit

STRETCH = 4.0  # a request without a deadline may take about this many times its own work
GRACE = 0.1  # share of the time allowed by which a deadline may be missed before it is given up
MAX_DECODES = 4  # pictures decoded by one unit: more would hold up the steps behind it


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may share a forward, and how many requests may hold latents."""

    max_rows: int = 16
    max_pixels: int = 16 * 1024 * 1024
    max_running: int = 32
    ageing_s: float = 30.0


class Scheduler:
    """Two containers, requests that wait and requests that run, and the choice among them."""

    def __init__(self, cost: CostTable, limits: Limits) -> None:
        self.cost = cost
        self.limits = limits
        self.waiting: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        self._learned_rows: dict[BatchKey, int] = {}
        self._last_was_step = True

    def add(self, request: Request) -> None:
        self.waiting[request.id] = request

    def remove(self, request: Request) -> None:
        self.waiting.pop(request.id, None)
        self.running.pop(request.id, None)

    def next(self, now: float, ready: Callable[[Request], bool]) -> Unit | None:
        """The next unit of work, or None when nothing can run."""
        self._start_waiting(now)
        able = [r for r in self.running.values() if not r.launched_all and ready(r)]
        if not able:
            return None
        able.sort(key=lambda request: self.urgency(request, now))
        lead = self._choose(able, now)
        self._last_was_step = lead.stage.denoises
        batch = tuple(self._companions(lead, able))
        return Unit(lead.key, batch, tuple(request.step for request in batch))

    def urgency(self, request: Request, now: float) -> tuple[float, float]:
        """Sorts the most urgent first: slack in seconds, then arrival."""
        work = self.cost.remaining(request)
        bonus = request.priority * self.limits.ageing_s / 20
        if request.deadline is not None:
            slack = request.deadline - now - work
            if slack >= -GRACE * (request.deadline - request.arrival):
                return slack - bonus, request.arrival
        patience = min(self.limits.ageing_s, STRETCH * work)
        return max(request.arrival + patience - now, 0.0) - bonus, request.arrival

    def row_limit(self, key: BatchKey) -> int:
        """Most rows of one unit of `key`: by setting, by pixels, and by what once did not fit."""
        limit = min(self.limits.max_rows, self._learned_rows.get(key, self.limits.max_rows))
        if key.stage is Stage.DECODE:
            limit = min(limit, MAX_DECODES)
        if pixels := key.height * key.width:
            limit = min(limit, self.limits.max_pixels // pixels)
        return max(limit, 1)

    def halve(self, unit: Unit) -> None:
        """The unit did not fit the device: remember to stay at half of it."""
        self._learned_rows[unit.key] = max(unit.rows // 2, 1)

    def position(self, request: Request, now: float) -> int:
        """Place in the queue, from 1; 0 once it runs."""
        if request.id not in self.waiting:
            return 0
        mine = self.urgency(request, now)
        return 1 + sum(self.urgency(other, now) < mine for other in self.waiting.values())

    def _start_waiting(self, now: float) -> None:
        while self.waiting and len(self.running) < self.limits.max_running:
            request = min(self.waiting.values(), key=lambda r: self.urgency(r, now))
            del self.waiting[request.id]
            request.status, request.started = Status.RUNNING, now
            self.running[request.id] = request

    def _choose(self, able: list[Request], now: float) -> Request:
        """The most urgent step, or the most urgent short unit (encode, decode) in between.

        Short units let a newcomer join the batch and a finished one leave it, so they go
        first; but never twice in a row while steps wait, nor where a step cannot spare the time.
        """
        step = next((r for r in able if r.stage.denoises), None)
        short = next((r for r in able if not r.stage.denoises), None)
        if step is None or short is None:
            return able[0]
        if not self._last_was_step:
            return step
        spare, _ = self.urgency(step, now)
        is_behind = self.urgency(short, now) > self.urgency(step, now)
        hurts = is_behind and 0 <= spare < self.cost.unit(short.key, short.rows)
        return step if hurts and step.deadline is not None else short

    def _companions(self, lead: Request, able: Iterable[Request]) -> Iterable[Request]:
        """The lead and, in order of urgency, those that fit into its forward."""
        yield lead
        if lead.alone:
            return
        key, room = lead.key, self.row_limit(lead.key) - lead.rows
        for request in able:
            if request is lead or request.alone or request.rows > room or request.key != key:
                continue
            room -= request.rows
            yield request
