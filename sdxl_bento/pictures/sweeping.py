"""The thread that keeps an image store within its bounds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.pictures.reasons import reason

logger = logging.getLogger(f"bentoml.{__name__}")

GRACE_S = 10.0
_CHECK_EVERY_S = 30.0
_CLOSE_S = 1.0


class Sweeper(threading.Thread):
    """Sweeps a store when it starts, after much was written, and as pictures grow old.

    Each sweep lists the whole store, so there is none for every single picture.
    """

    def __init__(
        self,
        sweep: Callable[[float], None],
        *,
        after_bytes: int,
        after_s: float,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            sweep: removes superfluous pictures, after a grace period in seconds.
            after_bytes: sweep as soon as this many bytes were written since the last sweep.
            after_s: sweep if the last sweep was longer ago than this, even if nothing was written.
            clock: the current time in seconds.
        """
        super().__init__(name="sdxl-sweep", daemon=True)
        self._sweep = sweep
        self._after_bytes = after_bytes
        self._after_s = after_s
        self._clock = clock
        self._lock = threading.Lock()
        self._unswept_bytes = 0
        self._due = threading.Event()
        self._closed = threading.Event()

    def wrote(self, size: int) -> None:
        """Count `size` bytes that this process has written."""
        with self._lock:
            self._unswept_bytes += size
            if self._unswept_bytes >= self._after_bytes:
                self._due.set()

    def reset(self) -> None:
        """Count from zero: a sweep begins."""
        with self._lock:
            self._unswept_bytes = 0

    def wait(self, seconds: float) -> bool:
        """Let time pass. Returns whether the store was closed meanwhile."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """End the thread, if it was started; waits a moment for a sweep that is under way."""
        self._closed.set()
        self._due.set()
        if self.ident is not None:
            self.join(_CLOSE_S)

    def run(self) -> None:
        """Sweep until `close` is called."""
        while not self._closed.is_set():
            self._due.clear()
            swept = self._clock()
            try:
                self._sweep(GRACE_S)
            except StoreUnavailable as error:
                logger.warning("the image store could not be swept: %s", reason(error))
            while not (self._closed.is_set() or self._due.wait(_CHECK_EVERY_S)):
                if self._unswept_bytes or self._clock() - swept > self._after_s:
                    break
