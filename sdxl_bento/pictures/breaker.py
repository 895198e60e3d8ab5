"""A circuit breaker: nobody waits for a store that has just failed to answer others."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.pictures.reasons import reason

logger = logging.getLogger(f"bentoml.{__name__}")

FAILURES = 2
PROBE_EVERY_S = 2.0
_ANSWERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}


def has_answered(error: BaseException | None) -> bool:
    """Whether the store is there and has refused, which costs its callers no time."""
    if isinstance(error, PermissionError | FileNotFoundError):
        return True
    return isinstance(error, OSError) and error.errno in _ANSWERS


class Breaker:
    """Counts failures. After `FAILURES` in a row it is open, and a thread probes the store.

    While it is open, `require` raises at once. It closes as soon as a probe succeeds in time.
    """

    def __init__(
        self,
        probe: Callable[[], object],
        *,
        within_s: float,
        on_change: Callable[[bool], None] = lambda available: None,
    ) -> None:
        """
        Args:
            probe: uses the store, and raises whatever it raises.
            within_s: a probe that takes longer than this has failed.
            on_change: called with whether the store is available, when that has changed.
        """
        self._probe = probe
        self._within_s = within_s
        self._on_change = on_change
        self._lock = threading.Lock()
        self._failures = 0
        self._reason = ""
        self._open = False
        self._ended = threading.Event()

    @property
    def is_open(self) -> bool:
        """Whether the store is not asked at present."""
        return self._open

    def require(self) -> None:
        """Raise StoreUnavailable, caused by the reason, while the breaker is open."""
        if self._open:
            raise StoreUnavailable from ConnectionError(
                f"it is left alone until it answers again ({self._reason})"
            )

    def succeeded(self) -> None:
        """The store has answered in time."""
        with self._lock:
            self._failures = 0
            was_open, self._open = self._open, False
        if was_open:
            logger.warning("the image store answers again")
            self._on_change(True)

    def failed(self, error: StoreUnavailable) -> None:
        """The store has failed, for the reason that is the error's cause."""
        if has_answered(error.__cause__):
            self.succeeded()
            return
        with self._lock:
            self._failures += 1
            self._reason = reason(error)
            if self._open or self._failures < FAILURES or self._ended.is_set():
                return
            self._open = True
        logger.warning(
            "the image store does not answer (%s); it is probed every %g s, and left alone until "
            "it answers",
            self._reason,
            PROBE_EVERY_S,
        )
        self._on_change(False)
        threading.Thread(target=self._watch, name="sdxl-store-probe", daemon=True).start()

    def close(self) -> None:
        """Stop probing."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(PROBE_EVERY_S) and self._open:
            begin = time.monotonic()
            try:
                self._probe()
            except Exception as error:  # client libraries share no class of errors
                if not has_answered(error):
                    self._reason = reason(error)
                    continue
            if time.monotonic() - begin <= self._within_s:
                self.succeeded()
