"""Making room on a file system that is full, although the image store is within its own bound."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from sdxl_bento.errors import StoreUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = ("StorageFull", "InsufficientStorage", "QuotaExceeded")  # of S3's servers
_FRUITLESS = 2  # so many rounds after which nobody could write
_MOST_ROUNDS = 20
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
        self._written = 0
        self._resting_until = float("-inf")

    def write(self, write: Callable[[], None], size: int) -> None:
        """Write `size` bytes, if necessary again after room was made.

        Raises:
            StoreUnavailable: they could not be written.
        """
        try:
            self._try(write)
        except StoreUnavailable as error:
            self._require_sense(error)
            with self._lock:  # one after the other, so that they don't take each other's room
                self._make_room_and(write, size)

    def _make_room_and(self, write: Callable[[], None], size: int) -> None:
        fruitless, written = 0, -1
        for _ in range(_MOST_ROUNDS):
            try:
                self._try(write)  # at first, because another thread may have made room meanwhile
                return
            except StoreUnavailable as error:
                self._require_sense(error)
                # What newcomers have written since the last round shows that there was room.
                fruitless = fruitless + 1 if self._written == written else 0
                if fruitless == _FRUITLESS:
                    self._resting_until = self._clock() + _REST_S
                    raise
                if not self._remove_oldest(size):
                    raise
                written = self._written
        self._try(write)

    def _try(self, write: Callable[[], None]) -> None:
        write()
        self._written += 1

    def _require_sense(self, error: StoreUnavailable) -> None:
        """Raise the error unless it makes sense to make room."""
        if not is_full(error.__cause__) or self._clock() < self._resting_until:
            raise error
