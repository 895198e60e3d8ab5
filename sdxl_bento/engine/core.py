"""The engine: schedule, run, update. One unit of work at a time, the batch formed anew each time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sdxl_bento.engine.admission import Admission, QueueLimits
from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.executor import Completion, DeviceOutOfMemory, Executor
from sdxl_bento.engine.request import Phase, Request, Status, Unit
from sdxl_bento.engine.scheduler import Limits, Scheduler
from sdxl_bento.errors import (
    NotReady,
    OutOfMemory,
    RequestCancelled,
    RequestFailed,
    RequestNotFound,
    SDXLError,
)

IN_FLIGHT = 2  # units the device may be ahead of us; a newcomer waits for no more than these


class Engine:
    """Owns every request from `submit` to its one end.

    `submit` and `cancel` may be called from any thread, `step` from one. The lock guards the
    containers and is never held while a unit runs.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits | None = None,
        queue_limits: QueueLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost: CostTable | None = None,
        on_unit: Callable[[Completion], None] | None = None,
    ) -> None:
        limits = limits or Limits()
        self.executor = executor
        self.clock = clock
        self.cost = cost or CostTable()
        self.scheduler = Scheduler(self.cost, limits)
        self.admission = Admission(self.cost, queue_limits or QueueLimits(), limits.max_rows)
        self.lock = threading.Lock()
        self.closed = False
        self._on_unit = on_unit
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def submit(self, request: Request, min_share: float | None = None) -> tuple[Phase, ...]:
        """Take a request in. Its arrival is now; a deadline is in seconds of the clock.

        Args:
            min_share: if given, steps may be taken off down to this share of them, where the
                deadline cannot be met otherwise.

        Returns:
            The phases that will run: the request's own, or fewer steps.

        Raises:
            Refused: it was turned away and nothing of it is kept.
        """
        with self.lock:
            if self.closed:
                raise NotReady("draining")
            waiting, running = self.scheduler.waiting, self.scheduler.running
            others = list(self._requests.values())
            now = self.clock()
            if min_share is not None:
                self.admission.degrade(request, others, min_share, now)
            places = self.scheduler.limits.max_running - len(running)
            self.admission.check(request, waiting.values(), running.values(), places, now)
            self._requests[request.id] = request
            self.scheduler.add(request)
            return request.phases

    def cancel(self, request_id: str) -> None:
        """Ask for a request's end; it takes part in no further unit.

        Raises:
            RequestNotFound: there is none, or it has ended.
        """
        with self.lock:
            if request_id not in self._requests:
                raise RequestNotFound(request_id)
            self._requests[request_id].cancelling = True

    def step(self) -> bool:
        """Schedule, run, update. False when there was nothing to do."""
        unit = self._schedule()
        launched = unit is not None and self._launch(unit)
        completions = list(self.executor.collect(IN_FLIGHT if launched else 0))
        for completion in completions:
            self._update(completion)
        return unit is not None or bool(completions)

    def close(self) -> None:
        """Take no more requests."""
        with self.lock:
            self.closed = True

    def fail_all(self, error: SDXLError) -> None:
        """End every request with `error`."""
        with self.lock:
            requests = list(self._requests.values())
        for request in requests:
            self._end(request, Status.FAILED, error)

    def _schedule(self) -> Unit | None:
        for request in [r for r in self._snapshot() if r.cancelling]:
            self._end(request, Status.CANCELLED, RequestCancelled("the request was cancelled"))
        unfit: list[tuple[Request, SDXLError]] = []

        def ready(request: Request) -> bool:
            try:
                return self.executor.ready(request)
            except SDXLError as error:
                unfit.append((request, error))
                return False

        with self.lock:
            unit = self.scheduler.next(self.clock(), ready)
        for request, error in unfit:
            self._end(request, Status.FAILED, error)
        return unit

    def _launch(self, unit: Unit) -> bool:
        try:
            self.executor.launch(unit)
        except DeviceOutOfMemory as error:
            if len(unit.requests) > 1:
                with self.lock:
                    self.scheduler.halve(unit)
            else:
                self._end(unit.requests[0], Status.FAILED, OutOfMemory(str(error)))
            return False
        except Exception as error:
            self._blame(unit, error)
            return False
        for request in unit.requests:
            request.alone = False
            request.advance()
        return True

    def _blame(self, unit: Unit, error: Exception) -> None:
        """Find out whose fault it was: each runs alone next, and fails alone or goes on."""
        if len(unit.requests) > 1:
            for request in unit.requests:
                request.alone = True
            return
        failure = error if isinstance(error, SDXLError) else RequestFailed(repr(error))
        failure.__cause__ = error if failure is not error else failure.__cause__
        self._end(unit.requests[0], Status.FAILED, failure)

    def _update(self, completion: Completion) -> None:
        unit = completion.unit
        with self.lock:
            self.cost.observe(unit.key, completion.rows, completion.seconds)
        if self._on_unit is not None:
            self._on_unit(completion)
        for request, step in zip(unit.requests, unit.steps, strict=True):
            request.in_flight -= 1
            if request.has_ended:
                continue
            stage = unit.key.stage
            request.stage_s[stage] = request.stage_s.get(stage, 0.0) + completion.seconds
            if request.on_progress is not None:
                request.on_progress(request, stage, step + 1, completion.previews.get(request.id))
            if request.id in completion.failures:
                self._end(request, Status.FAILED, completion.failures[request.id])
            elif request.launched_all and not request.in_flight:
                request.result = completion.results.get(request.id)
                self._end(request, Status.FINISHED, None)

    def _end(self, request: Request, status: Status, error: SDXLError | None) -> None:
        with self.lock:
            self.scheduler.remove(request)
            del self._requests[request.id]
        self.executor.release(request)
        request.status, request.error, request.ended = status, error, self.clock()
        if request.on_end is not None:
            request.on_end(request)

    def _snapshot(self) -> list[Request]:
        with self.lock:
            return list(self._requests.values())
