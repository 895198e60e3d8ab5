"""The engine's thread, seen from asyncio: submit, follow, cancel, drain."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.request import Fewer, Request, Stage
from sdxl_bento.errors import EngineDead, NotReady, RequestNotFound, SDXLError

logger = logging.getLogger(f"bentoml.{__name__}")


class EngineState(StrEnum):
    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class StepDone:
    """One unit of a request has completed. `preview` is a picture of it, if one was asked for."""

    stage: Stage
    step: int
    preview: object


class AsyncEngine:
    """Owns the thread that owns the accelerator.

    `build` runs in that thread: it loads the models, which may take minutes, and returns the
    engine. Its argument, `wake`, is to be called when a request becomes ready in another thread.
    """

    def __init__(self, build: Callable[[Callable[[], None]], Engine]) -> None:
        self._build = build
        self._engine: Engine | None = None
        self._state = EngineState.NEW
        self._reason = ""
        self._work = threading.Condition()
        self._woken = False
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> EngineState:
        """What the engine is doing; DEAD also when its thread has vanished."""
        alive = self._thread is not None and self._thread.is_alive()
        if self._state in (EngineState.READY, EngineState.DRAINING) and not alive:
            return EngineState.DEAD
        return self._state

    @property
    def reason(self) -> str:
        """Why it is dead; empty otherwise."""
        return self._reason

    @property
    def engine(self) -> Engine:
        """The engine itself.

        Raises:
            NotReady: it is still loading, or draining.
            EngineDead: its thread has ended.
        """
        state = self.state
        if state is EngineState.DEAD:
            raise EngineDead(f"the engine has died: {self._reason or 'its thread is gone'}")
        if self._engine is None or state is not EngineState.READY:
            raise NotReady(str(state))
        return self._engine

    def start(self) -> None:
        """Start the thread, once."""
        if self._state is EngineState.NEW:
            self._state = EngineState.LOADING
            self._thread = threading.Thread(target=self._main, name="sdxl-engine", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Tell the thread that there may be something to do. Safe from any thread."""
        with self._work:
            self._woken = True
            self._work.notify()

    async def run(
        self,
        request: Request,
        on_step: Callable[[StepDone], None] | None = None,
        fewer: Fewer | None = None,
    ) -> object:
        """Submit a request and wait for its result. Cancelling the caller cancels the request.

        `fewer` is leave to take steps off, see `Engine.submit`.

        Raises:
            Refused: turned away at the door.
            RequestCancelled, RequestFailed: how it ended otherwise.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()

        def progress(_: Request, stage: Stage, step: int, preview: object) -> None:
            if on_step is not None:
                loop.call_soon_threadsafe(on_step, StepDone(stage, step, preview))

        def end(ended: Request) -> None:
            loop.call_soon_threadsafe(_settle, future, ended)

        request.on_progress, request.on_end = progress, end
        engine = self.engine
        engine.submit(request, fewer)
        self.wake()
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(request.id)
            raise

    def cancel(self, request_id: str) -> bool:
        """Ask for the end of a request; False if there is none of that name any more."""
        if self._engine is None:
            return False
        try:
            self._engine.cancel(request_id)
        except RequestNotFound:
            return False
        self.wake()
        return True

    def counts(self) -> dict[str, int]:
        """Requests that wait and that run."""
        return {} if self._engine is None else self._engine.counts()

    def position(self, request: Request) -> int:
        """Its place in the queue, from 1; 0 once it runs."""
        return 0 if self._engine is None else self._engine.position(request)

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests, let those at work end within `drain_s` seconds, then stop."""
        if self._thread is None or self._state in (EngineState.STOPPED, EngineState.DEAD):
            return
        if self._state is EngineState.READY:
            self._state = EngineState.DRAINING
        if self._engine is not None:
            self._engine.close()
            deadline = time.monotonic() + drain_s
            while len(self._engine) and self.state is EngineState.DRAINING:
                if time.monotonic() >= deadline:
                    logger.warning("stopping with %d requests at work", len(self._engine))
                    break
                await asyncio.sleep(0.02)
        if self.state is not EngineState.DEAD:
            self._state = EngineState.STOPPED
        self.wake()
        await asyncio.to_thread(self._thread.join, max(drain_s, 1.0))

    def _main(self) -> None:
        try:
            self._engine = self._build(self.wake)
            if self._state is EngineState.LOADING:
                self._state = EngineState.READY
            while self._state in (EngineState.READY, EngineState.DRAINING):
                if not self._engine.step():
                    self._sleep()
        except BaseException as error:
            self._reason = f"{type(error).__name__}: {error}"
            self._state = EngineState.DEAD
            logger.exception("the engine has died")
            self._fail_rest(EngineDead(f"the engine has died: {self._reason}"))
            return
        self._fail_rest(NotReady(str(EngineState.STOPPED)))

    def _sleep(self) -> None:
        with self._work:
            if not self._woken:
                self._work.wait()
            self._woken = False

    def _fail_rest(self, error: SDXLError) -> None:
        if self._engine is None:
            return
        self._engine.close()
        self._engine.fail_all(error)


def _settle(future: asyncio.Future[object], request: Request) -> None:
    if future.done():
        return
    if request.error is not None:
        future.set_exception(request.error)
    else:
        future.set_result(request.result)
