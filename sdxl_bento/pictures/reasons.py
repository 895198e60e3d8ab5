"""What went wrong with an image store, for the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_EVERY_S = 30.0
_MOST_CHARS = 300


def reason(error: BaseException) -> str:
    """An error in one line: its cause's message if it has a cause; never empty."""
    error = error.__cause__ or error
    return " ".join(str(error).split())[:_MOST_CHARS] or type(error).__name__


class Rarely:
    """Logs warnings of one kind at most once in a while, with how many were left out since."""

    def __init__(
        self,
        logger: logging.Logger,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._left_out = 0

    def warn(self, message: str, *values: object) -> None:
        """Log a warning, in the form of `Logger.warning`, unless there was one shortly before."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
            self._next = now + self._every_s
        if left_out:
            message, values = (
                f"{message} (and %d more since the last such line)",
                (*values, left_out),
            )
        self._logger.warning(message, *values)
