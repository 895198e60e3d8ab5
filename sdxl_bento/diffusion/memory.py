"""Running out of memory, as one type of error, whatever torch or numpy raises for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdxl_bento.engine.executor import DeviceOutOfMemory

# torch has an exception type for CUDA's allocator only. Its allocator for the CPU raises a plain
# RuntimeError with one of these in its message (c10/core/impl/alloc_cpu.cpp).
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


@contextmanager
def out_of_memory_typed() -> Iterator[None]:
    """Raise `DeviceOutOfMemory` for any error inside that means a lack of memory."""
    try:
        yield
    except DeviceOutOfMemory:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DeviceOutOfMemory(str(error)) from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in _CPU_ALLOCATOR):
            raise DeviceOutOfMemory(str(error)) from error
        raise
