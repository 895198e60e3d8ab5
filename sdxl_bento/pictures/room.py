"""Making room on a file system that is full, although the image store is within its own bound."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from sdxl_bento.errors import StoreUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = ("StorageFull", "InsufficientStorage", "QuotaExceeded")  # of S3's servers
_TRIES = 8  # other threads may take the room that one has made
_FRUITLESS = 2
_REST_S = 30.0


def is_full(error: BaseException | None) -> bool:
    """Whether an error of a file system says that it, or somebody's quota, is full."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL or any(text in str(error) for text in _FULL_TEXTS)


class Room:
    """Removes pictures when there is no room for another, and tries that one again.

    Where removing pictures doesn't help, because others than this store take the room, it rests
    for a while: it would otherwise remove one picture after the other in vain.
    """

    def __init__(
        self, remove_oldest: Callable[[int], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            remove_oldest: removes pictures of at least so many bytes; returns whether it has
                removed any.
            clock: the time in seconds.
        """
        self._remove_oldest = remove_oldest
        self._clock = clock
        self._lock = threading.Lock()
        self._rounds = 0
        self._fruitless = 0  # rounds in a row after which nothing could be written
        self._written = self._written_before = 0
        self._resting_until = float("-inf")

    def write(self, write: Callable[[], None], size: int) -> None:
        """Write `size` bytes, if necessary again after room was made.

        Raises:
            StoreUnavailable: they could not be written.
        """
        for _ in range(_TRIES):
            rounds = self._rounds
            try:
                write()
            except StoreUnavailable as error:
                if not is_full(error.__cause__) or not self._make(size, rounds):
                    raise
            else:
                self._written += 1
                return
        write()

    def _make(self, size: int, rounds: int) -> bool:
        """Whether there is more room now than when `rounds` was the number of removals."""
        with self._lock:
            if self._rounds != rounds:  # another thread has just made room for all
                return True
            now = self._clock()
            if now < self._resting_until:
                return False
            if self._rounds and self._written == self._written_before:
                self._fruitless += 1
            else:
                self._fruitless = 0
            if self._fruitless >= _FRUITLESS:
                self._resting_until, self._fruitless = now + _REST_S, 0
                return False
            self._written_before = self._written
            made = self._remove_oldest(size)
            self._rounds += made
            return made
