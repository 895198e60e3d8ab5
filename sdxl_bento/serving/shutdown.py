"""The end of a worker process: what happens between the signal and the exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from types import FrameType

logger = logging.getLogger(f"bentoml.{__name__}")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 10.0  # the most that the end may take in addition to the time for running calls
_ANSWER_S = 5.0  # within which an answer that is complete has to reach its client

Step = Callable[[], Coroutine[object, object, None]]


class Shutdown:
    """Lets running calls finish on SIGTERM or SIGINT, and answers everybody until then.

    The web server's own handler closes its listening socket at once. The supervisor, however, keeps
    that socket open, so that new connections, those of probes among them, would be accepted and
    then hang. Hence the web server hears of the signal only at the end: until then, probes are
    answered and new calls are refused. Only a second SIGINT reaches it at once.
    """

    def __init__(self, drain: Step, close: Step, within_s: float) -> None:
        """
        Args:
            drain: refuses new calls at once, and lets the running ones finish.
            close: releases what answers need. Called when all calls have been answered.
            within_s: a process that has not ended so many seconds after the signal, whatever it
                waits for, is ended by force.
        """
        self._drain = drain
        self._close = close
        self._within_s = within_s
        self._signalled = threading.Event()
        self._disarmed = threading.Event()
        self._interrupted = False
        self._task: asyncio.Task[None] | None = None
        self._previous: dict[int, object] = {}

    def on_signal(self) -> None:
        """Shut down on a signal from now on. Call this in the event loop.

        Outside the main thread, where Python allows no signal handlers, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._end_by_force, name="sdxl-end", daemon=True).start()

    def disarm(self) -> None:
        """Let the process go on, even if the signal has come: nothing is ended by force."""
        self._disarmed.set()
        self._signalled.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            self._pass_on(number)
            return
        self._interrupted |= number == signal.SIGINT
        if not self._signalled.is_set():
            self._signalled.set()
            self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        self._task = self._loop.create_task(self._run(number))

    async def _run(self, number: int) -> None:
        try:
            await self._drain()
            await self._answered()
            await self._close()
        finally:
            self._pass_on(number)

    async def _answered(self) -> None:
        """Wait until the web server has answered what it was asked, but not for long."""
        deadline = time.monotonic() + _ANSWER_S
        while self._calls() and time.monotonic() < deadline:  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.02)

    def _calls(self) -> Collection[object]:
        """What the web server is answering; its handler is a method of uvicorn's server."""
        server = getattr(self._previous[signal.SIGTERM], "__self__", None)
        tasks: Collection[object] = getattr(getattr(server, "server_state", None), "tasks", ())
        return tasks

    def _pass_on(self, number: int) -> None:
        previous = self._previous[number]
        if callable(previous):
            previous(number, None)
        elif previous is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _end_by_force(self) -> None:
        self._signalled.wait()
        if self._disarmed.wait(self._within_s):
            return
        logger.error("the process did not end within %g s, and is ended by force", self._within_s)
        os._exit(1)
