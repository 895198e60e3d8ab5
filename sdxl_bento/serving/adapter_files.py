"""Looks at adapters' files again, so that what clients are told and given is what the disk holds.

Files are looked at in threads of their own, because a folder may be on a network. One look serves
all who wait for one, and after it the folder is left alone for ten times as long as it took.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora.pool import LoraPool

logger = logging.getLogger(f"bentoml.{__name__}")
REST = 10.0  # times as long as a look took
MOST_REST_S = 5.0
PATIENCE_S = 10.0


class AdapterFiles:
    """The files of all models' adapters."""

    def __init__(self, pools: Callable[[], Sequence[LoraPool]]) -> None:
        """`pools` gives the adapters of the models that are loaded by then."""
        self._pools = pools
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="lora-looks")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="lora-checks")
        self._lock = Lock()
        self._next: Future[None] | None = None  # a look that has not begun yet
        self._rests_until = 0.0

    async def look(self) -> None:
        """Look at all of them. If the disk does not answer, what was known before stays known."""
        with self._lock:
            if self._next is None:
                self._next = self._looks.submit(self._look)
            begun = self._next
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(begun)), PATIENCE_S)
        except TimeoutError:
            logger.warning("SDXL_LORA_DIR has not answered for %.0f s", PATIENCE_S)

    async def check(self, names: Collection[str]) -> None:
        """Look again if one of these adapters is unknown, or its file has changed or is gone."""
        if not names:
            return
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._checks, self._outdated, names):
            await self.look()

    def _outdated(self, names: Collection[str]) -> bool:
        pools = self._pools()
        known = {name for pool in pools for name in pool.names()}
        return not known.issuperset(names) or any(pool.outdated(names) for pool in pools)

    def _look(self) -> None:
        time.sleep(max(self._rests_until - time.monotonic(), 0.0))
        with self._lock:
            self._next = None  # whoever comes from now on wants a later one
        begin = time.monotonic()
        try:
            for pool in self._pools():
                pool.rescan()
        except OSError as error:
            logger.warning("SDXL_LORA_DIR cannot be read: %s", error)
        now = time.monotonic()
        self._rests_until = now + min(REST * (now - begin), MOST_REST_S)
