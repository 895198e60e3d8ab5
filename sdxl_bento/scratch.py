"""Temporary folders that go even if the process that has made them was killed.

Whoever uses such a folder holds a lock on a file in it. The kernel releases the lock when the
process ends, however it ends, so the next start can tell whose folders have no user any more. A
process's number could not tell that: numbers are used again, and mean nothing in another container.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(f"bentoml.{__name__}")

LOCK = ".in-use"
_PREFIX = "sdxl-bento-"
_RANDOM = re.compile(rf"{_PREFIX}(ui|onnx|optimum|metrics)-\w+")
_OLD_S = 24 * 3600.0  # folders of earlier versions have no lock; a day later nobody uses them
_locks: list[int] = []  # stay open until the process ends


def make(kind: str) -> Path:
    """A new folder in the folder for temporary files, held by this process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
    hold(folder)
    return folder


def of_user() -> Path:
    """The folder that contains those that are named after a server; it may not exist yet."""
    return Path(tempfile.gettempdir(), f"{_PREFIX}{os.getuid()}")


def hold(folder: Path) -> None:
    """Create the folder if it is missing, and keep it until this process ends.

    Several processes can hold a folder.
    """
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # it was just removed
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_at(lock, folder / LOCK):
            _locks.append(lock)
            return
        os.close(lock)  # somebody has removed the folder before it was locked


def remove_dead() -> list[Path]:
    """Remove this user's folders that no process holds any more. Returns them."""
    return [folder for folder in _folders() if _remove_if_dead(folder)]


def _folders() -> Iterator[Path]:
    try:
        entries = [*Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"), *of_user().glob("*")]
    except OSError:
        return
    for entry in entries:
        try:
            is_mine = (
                not entry.is_symlink() and entry.is_dir() and entry.stat().st_uid == os.getuid()
            )
        except OSError:  # it has just been removed
            continue
        in_users = entry.parent == of_user() and entry.name.isdecimal()
        if is_mine and (in_users or _RANDOM.fullmatch(entry.name)):
            yield entry


def _remove_if_dead(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        if not _is_abandoned(folder):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # somebody holds it
        return False
    finally:
        os.close(lock)
    return True


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder without a lock has no user, as far as can be told."""
    try:
        if folder.name.isdecimal():
            os.kill(int(folder.name), 0)  # sends no signal, but fails if there is no such process
            return False
        return time.time() - folder.stat().st_mtime > _OLD_S
    except ProcessLookupError:
        return time.time() - folder.stat().st_mtime > 60.0  # it may be about to be held
    except (OSError, OverflowError):
        return False


def _is_at(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)
