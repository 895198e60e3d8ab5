"""The engine: schedule, run, update. One unit at a time, the batch formed anew each time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdxl_bento.engine.admission import Admission, QueueLimits
from sdxl_bento.engine.cost import CostTable
from sdxl_bento.engine.executor import Completion, DeviceOutOfMemory, Executor
from sdxl_bento.engine.request import Fewer, Request, Status, Unit
from sdxl_bento.engine.scheduler import Limits, Scheduler
from sdxl_bento.errors import (
    NotReady,
    OutOfMemory,
    RequestCancelled,
    RequestFailed,
    RequestNotFound,
    SDXLError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(f"bentoml.{__name__}")

IN_FLIGHT = 2  # units sent to the device and not yet complete; a new request waits for these


class Engine:
    """Owns every request from `submit` to its one end.

    `submit` and `cancel` may be called from any thread, `step` from one. The lock guards the
    containers and is never held while a unit runs. A callback that raises is logged; it harms
    neither the engine nor the request. An exception out of `step` means that the executor can
    not go on: the caller then closes the engine and ends what is left by `fail_all`.
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
        self.executor = executor
        self.clock = clock
        self.cost = cost or CostTable()
        self.scheduler = Scheduler(self.cost, limits or Limits())
        self.admission = Admission(self.cost, queue_limits or QueueLimits(), self.scheduler)
        self.lock = threading.Lock()
        self.closed = False
        self._on_unit = on_unit
        self._requests: dict[str, Request] = {}
        self._leaving: list[Request] = []
        self._in_flight: deque[Unit] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def submit(self, request: Request, fewer: Fewer | None = None) -> int | None:
        """Take a request in. Its arrival is now; a deadline is in seconds of the clock.

        Args:
            fewer: leave to take steps off where the deadline cannot be met otherwise. Its plan
                is asked for before the request can start, and replaces phases and payload.

        Returns:
            The number of steps that `fewer` was asked to plan, None if nothing was taken off.

        Raises:
            Refused: it was turned away and nothing of it is kept.
        """
        with self.lock:
            if self.closed:
                raise NotReady("draining")
            if request.id in self._requests:
                raise ValueError(f"a request with the id {request.id!r} is at work already")
            request.arrival = now = self.clock()
            busy = self._busy()
            steps = None
            if fewer is not None and request.deadline is not None:
                steps = self.admission.shorten(request, fewer, now, busy)
            self.admission.check(request, now, busy)
            self._requests[request.id] = request
            self.scheduler.add(request)
            return steps

    def cancel(self, request_id: str) -> None:
        """Ask for a request's end; it takes part in no further unit.

        Raises:
            RequestNotFound: there is none, or it has ended.
        """
        with self.lock:
            request = self._requests.get(request_id)
            if request is None:
                raise RequestNotFound(request_id)
            if not request.cancelling:
                request.cancelling = True
                self._leaving.append(request)

    def counts(self) -> dict[str, int]:
        """Requests that wait and that run."""
        with self.lock:
            return {"waiting": len(self.scheduler.waiting), "running": len(self.scheduler.running)}

    def position(self, request: Request) -> int:
        """Its place in the queue, from 1; 0 once it runs."""
        with self.lock:
            return self.scheduler.position(request, self.clock())

    def step(self) -> bool:
        """Schedule, run, update. False when there was nothing to do."""
        self._end_cancelled()
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

    def _end_cancelled(self) -> None:
        with self.lock:
            leaving, self._leaving = self._leaving, []
        for request in leaving:
            self._end(request, Status.CANCELLED, RequestCancelled("the request was cancelled"))

    def _schedule(self) -> Unit | None:
        unfit: list[tuple[Request, Exception]] = []

        def ready(request: Request) -> bool:
            try:
                return self.executor.ready(request)
            except Exception as error:
                unfit.append((request, error))
                return False

        with self.lock:
            unit = self.scheduler.next(self.clock(), self._busy(), ready)
        for request, error in unfit:
            self._end(request, Status.FAILED, _as_sdxl_error(error))
        return unit

    def _launch(self, unit: Unit) -> bool:
        try:
            self.executor.launch(unit)
        except DeviceOutOfMemory as error:
            self._shrink(unit, error)
            return False
        except Exception as error:
            self._blame(unit, error)
            return False
        with self.lock:
            self._in_flight.append(unit)
            for request in unit.requests:
                request.alone = False
                request.advance()
        return True

    def _shrink(self, unit: Unit, error: DeviceOutOfMemory) -> None:
        """Try again with half of the batch, or once nothing else is on the device."""
        if len(unit.requests) > 1:
            with self.lock:
                self.scheduler.halve(unit, self.clock())
        elif not self._in_flight:
            self._end(unit.requests[0], Status.FAILED, OutOfMemory(str(error)))

    def _blame(self, unit: Unit, error: Exception) -> None:
        """Find the request that caused an error: each runs alone next, and fails or goes on."""
        if len(unit.requests) == 1:
            self._end(unit.requests[0], Status.FAILED, _as_sdxl_error(error))
        for request in unit.requests:
            request.alone = True

    def _update(self, completion: Completion) -> None:
        unit = completion.unit
        with self.lock:
            self._in_flight.popleft()
            self.cost.observe(unit.key, unit.rows, completion.seconds)
        with _logged("on_unit"):
            if self._on_unit is not None:
                self._on_unit(completion)
        for request, step in zip(unit.requests, unit.steps, strict=True):
            request.in_flight -= 1
            if not request.has_ended:
                self._progress(request, step, completion)

    def _progress(self, request: Request, step: int, completion: Completion) -> None:
        """One unit of a living request has completed; perhaps it was the last."""
        stage = completion.unit.key.stage
        request.stage_s[stage] = request.stage_s.get(stage, 0.0) + completion.seconds
        if request.id in completion.failures:
            self._end(request, Status.FAILED, completion.failures[request.id])
            return
        with _logged("on_progress"):
            if request.on_progress is not None:
                request.on_progress(request, stage, step + 1, completion.previews.get(request.id))
        if request.launched_all and not request.in_flight:
            request.result = completion.results.get(request.id)
            self._end(request, Status.FINISHED, None)

    def _end(self, request: Request, status: Status, error: SDXLError | None) -> None:
        """End a request; all of them end here. Results of its units in flight are ignored."""
        with self.lock:
            if self._requests.pop(request.id, None) is None:
                return
            self.scheduler.remove(request)
        with _logged("release"):
            self.executor.release(request)
        request.status, request.error, request.ended = status, error, self.clock()
        with _logged("on_end"):
            if request.on_end is not None:
                request.on_end(request)

    def _busy(self) -> float:
        """Seconds that the device still needs for the units in flight, at most."""
        return sum(self.cost.unit(unit.key, unit.rows) for unit in self._in_flight)


def _as_sdxl_error(error: Exception) -> SDXLError:
    if isinstance(error, SDXLError):
        return error
    failure = RequestFailed(repr(error))
    failure.__cause__ = error
    return failure


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log an exception of a callback instead of letting it stop the engine."""
    try:
        yield
    except Exception:
        logger.exception("%s has failed", what)
