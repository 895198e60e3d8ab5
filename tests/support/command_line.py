"""`sdxl-bento` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.support.server import ROOT


@contextmanager
def command_line(
    arguments: Sequence[str], env: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[str]]:
    """Start it in the current folder, as a terminal would: a shell's job may ignore Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdxl_bento", *arguments],
        env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=_hear_interrupts,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
