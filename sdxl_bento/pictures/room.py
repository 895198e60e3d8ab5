"""Making room on a file system that is full, although the image store is within its own bound."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from sdxl_bento.errors import StoreUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = ("StorageFull", "InsufficientStorage", "QuotaExceeded")  # of S3's servers
_REST_S = 30.0


def is_full(error: BaseException | None) -> bool:
    """Whether an error of a file system says that it, or somebody's quota, is full."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL or any(text in str(error) for text in _FULL_TEXTS)


class Room:
    """Removes pictures when there is no room for another, and tries that one again.

    Where removing pictures doesn't help, because others take the room, it rests for a while: it
    would otherwise remove one picture after the other in vain.
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
        self._resting_until = float("-inf")

    def write(self, write: Callable[[], None], size: int) -> None:
        """Write `size` bytes, if necessary a second time.

        Raises:
            StoreUnavailable: they could not be written.
        """
        rounds = self._rounds
        try:
            write()
            return
        except StoreUnavailable as error:
            if not is_full(error.__cause__) or not self._make(size, rounds):
                raise
        try:
            write()
        except StoreUnavailable as error:
            if is_full(error.__cause__):
                self._resting_until = self._clock() + _REST_S
            raise

    def _make(self, size: int, rounds: int) -> bool:
        """Whether there is more room now than when `rounds` was the number of removals."""
        with self._lock:
            if self._rounds != rounds:  # another thread has just made room for all
                return True
            if self._clock() < self._resting_until:
                return False
            made = self._remove_oldest(size)
            self._rounds += made
            return made
