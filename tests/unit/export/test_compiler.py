"""The processes in which an export compiles."""

from __future__ import annotations

import signal
from multiprocessing import active_children
from typing import Any

import pytest

from export.compile import compiler
from export.errors import ExportError


class _Killed:
    """Kills the process that unpickles it, as the kernel does when memory runs out."""

    def __reduce__(self) -> Any:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_process_that_is_killed_ends_the_export() -> None:
    builds: Any = [_Killed(), _Killed()]
    with pytest.raises(ExportError, match=r"was killed, most likely because .* out of memory"):
        compiler._each_in_a_process(builds)
    assert not active_children()
