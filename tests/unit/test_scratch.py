"""Temporary folders: those of killed processes go, those of living ones stay."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sdxl_bento import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def another_process(temporary: Path) -> tuple[subprocess.Popen[bytes], list[Path]]:
    """A process that holds a folder of each kind, until it is killed; and the folders."""
    program = """
        import sys, tempfile
        tempfile.tempdir = sys.argv[1]
        from sdxl_bento import scratch
        scratch.of_user().mkdir(exist_ok=True)
        for kind in ("ui", "onnx"):
            scratch.make(kind)
        scratch.hold(scratch.of_user() / "1")  # by number, the folder of a living process
        print("held", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(temporary)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    folders = [*temporary.glob("sdxl-bento-*-*"), scratch.of_user() / "1"]
    assert len(folders) == 3
    return process, folders


def test_the_folders_of_the_dead_go_and_those_of_the_living_stay(temporary: Path) -> None:
    process, folders = another_process(temporary)
    own = scratch.make("ui")
    assert scratch.remove_dead() == []
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert set(scratch.remove_dead()) == set(folders)
    assert not any(folder.exists() for folder in folders)
    assert own.is_dir()


def test_what_is_not_ours_stays(temporary: Path) -> None:
    scratch.of_user().mkdir()
    (temporary / "elsewhere").mkdir()
    (temporary / "sdxl-bento-ui-link").symlink_to(temporary / "elsewhere")
    for name in ("sdxl-bento-mine", "sdxl-bento-ui", "other-ui-abc", f"{scratch.of_user()}/mine"):
        (temporary / name).mkdir()
        (temporary / name / scratch.LOCK).touch()
    (temporary / "sdxl-bento-ui-file").touch()
    before = sorted(temporary.rglob("*"))
    assert scratch.remove_dead() == []
    assert sorted(temporary.rglob("*")) == before


def test_folders_of_earlier_versions(temporary: Path) -> None:
    """They have no lock. A number tells whether its process lives; otherwise the age must do."""
    scratch.of_user().mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    living, dead = (scratch.of_user() / str(pid) for pid in (os.getpid(), ended.pid))
    old, young = temporary / "sdxl-bento-onnx-old", temporary / "sdxl-bento-onnx-young"
    for folder in (living, dead, old, young):
        folder.mkdir()
    for folder in (living, dead, old):
        os.utime(folder, (time.time() - 100_000,) * 2)
    assert set(scratch.remove_dead()) == {dead, old}


def test_a_folder_that_is_removed_while_it_is_taken_is_made_again(temporary: Path) -> None:
    folder = temporary / "sdxl-bento-ui-x"
    folder.mkdir()
    lock = os.open(folder / scratch.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that removes it does
    taking = threading.Thread(target=scratch.hold, args=(folder,))
    taking.start()
    time.sleep(0.05)
    (folder / scratch.LOCK).unlink()
    folder.rmdir()
    os.close(lock)
    taking.join(10)
    assert (folder / scratch.LOCK).exists()
    assert scratch.remove_dead() == []
