"""A worker ends when its parent process has ended, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from sdxl_bento.config import remember_supervisor, supervisor_pid
from sdxl_bento.serving import parent

WORKER = """
import os, sys, time
from sdxl_bento.serving import parent
sys.platform = sys.argv[1]
parent.end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from sdxl_bento.config import remember_supervisor
remember_supervisor()
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


@pytest.mark.parametrize("platform", ["linux", "another"])
def test_the_worker_of_a_parent_that_is_killed_ends(platform: str) -> None:
    command = [sys.executable, "-c", PARENT, WORKER, platform]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    assert psutil.wait_procs([worker], timeout=20)[0] == [worker]


def test_a_worker_whose_parent_has_ended_before_it_could_ask_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setenv("SDXL_SUPERVISOR", str(os.getpid()))  # which is not its parent
    parent.end_with_parent()
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_workers_are_told_who_supervises_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_SUPERVISOR", "x")
    assert supervisor_pid() is None
    remember_supervisor()
    assert supervisor_pid() == os.getpid()
