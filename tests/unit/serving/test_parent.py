"""A worker ends when its parent process has ended, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

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


SUPERVISOR = """
from sdxl_bento.serving.parent import replace_dead_workers_at_once
replace_dead_workers_at_once()
from bentoml._internal.utils.circus import create_standalone_arbiter
from bentoml.serving import create_watcher
worker = create_watcher(name="w", cmd="sleep", args=["600"])
create_standalone_arbiter([worker], check_delay=600).start()  # it never looks by itself
"""


def test_a_worker_that_dies_is_replaced_without_waiting_for_the_next_look() -> None:
    seen: set[int] = set()
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR]) as process:
        try:
            for _ in range(2):
                worker = _new_child(process.pid, seen)
                worker.kill()
            _new_child(process.pid, seen)
            process.terminate()  # while it is still busy with the replacement
            assert process.wait(20) == 0
        finally:
            process.kill()


def _new_child(pid: int, seen: set[int]) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            if child.pid not in seen and child.name() == "sleep":
                seen.add(child.pid)
                return child
        time.sleep(0.02)
    raise AssertionError("there is no new process")


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
