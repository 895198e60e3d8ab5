"""Threads for work that may hang, which never keep the process from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonPool(Executor):
    """A pool of daemon threads. The interpreter waits at its end for those of ThreadPoolExecutor,
    however long their work hangs; it does not wait for these.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started: list[threading.Thread] = []
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a thread. Raises RuntimeError after `close`."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            if not self._started:
                self._start()
            self._work.put(run)
        return future

    def close(self, within_s: float) -> bool:
        """Take no more work, and wait for what was submitted, but not longer than `within_s`.

        Returns whether all of it has ended.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._started:
                    self._work.put(None)
        deadline = time.monotonic() + within_s
        for thread in self._started:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._started)

    def shutdown(self, wait: bool = True, **options: Any) -> None:
        """As `Executor` defines it, but it does not wait long."""
        self.close(1.0 if wait else 0.0)

    def _start(self) -> None:
        for number in range(self._threads):
            thread = threading.Thread(target=self._run, name=f"{self._name}_{number}", daemon=True)
            thread.start()
            self._started.append(thread)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
