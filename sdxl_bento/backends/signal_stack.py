"""The stack on which a thread's signal handlers run (sigaltstack(2)), kept as it is.

OpenVINO's CPU plugin gives the calling thread a stack of its own when it compiles a model, and puts
the one of before back when that model is deleted. With two models, deleted in the order in which
they were compiled, the thread is left with a stack that has been freed, and the next signal ends
the process by a segmentation fault: Ctrl-C during an export, for example.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's `stack_t`."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int, int]:
    """The calling thread's stack for signals: its address, flags, and size in bytes."""
    stack = _Stack()
    _sigaltstack(None, ctypes.byref(stack))
    return stack.sp, stack.flags, stack.size


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Leave the calling thread with the stack for signals that it has now. Linux only."""
    if sys.platform != "linux":
        yield
        return
    stack = _Stack(*signal_stack())
    try:
        yield
    finally:
        _sigaltstack(ctypes.byref(stack), None)


def _sigaltstack(new: object, old: object) -> None:
    if ctypes.CDLL(None, use_errno=True).sigaltstack(new, old):
        raise OSError(ctypes.get_errno(), "sigaltstack")
