"""Work on what a caller has sent that is too long for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SHORT_BYTES = 16 << 10  # of these, no work takes longer than some milliseconds

# One thread: the work holds Python's lock, so that more would take as long and delay the loop more.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="reading")


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)`, in a thread if `size` bytes are more than `SHORT_BYTES`."""
    if size <= SHORT_BYTES:
        return work(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREAD, partial(work, *args, **kwargs))
