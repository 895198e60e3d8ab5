"""Which lines of the project each test runs, also in the processes that it starts.

A file of two bytes, the board, holds the number of the running test (zero between tests, and while
fixtures are set up). Every traced process maps it into memory and reads it with each line, so a
server that a test has started notes its lines under the test that calls it. Each process writes
what it has seen to a file of its own. Only the standard library is used: `site/sitecustomize.py`
imports this at the start of every process.
"""

from __future__ import annotations

import atexit
import inspect
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

VARIABLE = "SDXL_MUTANTS_TRACE"  # holds the folder of the board and the lines
TRACED = ("sdxl_bento/", "export/")
BOARD = "board"
WRITE_EVERY_S = 1.0  # a killed process loses what it has seen since
# A function that a test has called so often without running a new line is traced in some calls
# only: simulations call the same ones a million times.
PATIENCE = 300
EACH = 16
MOST_CALLS = 5_000_000  # of a test function; then it goes on without being traced

RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

resume: Callable[[], None] | None = None  # set in the process that runs the tests

Line = tuple[int, str, int]  # test, absolute path of the source, line
Trace = Callable[[FrameType, str, Any], Any]


class Board:
    """The number of the running test, shared by processes. Only one of them may set it."""

    def __init__(self, folder: Path) -> None:
        path = folder / BOARD
        if not path.exists():
            path.write_bytes(b"\0\0")
        with path.open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 2)

    def set(self, test: int) -> None:
        self.bytes[:] = test.to_bytes(2, "little")


def start(
    tree: Path, folder: Path, *, most_calls: int | None = None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Trace this process, and its threads to come, until it ends.

    Returns two functions: one traces this thread again after `most_calls` calls of functions have
    ended that, one writes what has been seen.
    """
    board = Board(folder).bytes
    prefixes = tuple(f"{tree}/{name}" for name in TRACED)
    seen: set[Line] = set()
    left = sys.maxsize
    calls_since: dict[tuple[int, CodeType], int] = {}  # a new line, by test and function

    def lines(frame: FrameType, event: str, argument: object) -> Trace:
        if event == "line":
            test, code = board[0] | board[1] << 8, frame.f_code
            line = (test, code.co_filename, frame.f_lineno)
            if line not in seen:
                seen.add(line)
                calls_since[test, code] = 0
        return lines

    def calls(frame: FrameType, event: str, argument: object) -> Trace | None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.settrace(None)
            return None
        code = frame.f_code
        if not code.co_filename.startswith(prefixes):
            return None
        if code.co_flags & RESUMED:  # each of its steps looks like a call
            return lines
        key = board[0] | board[1] << 8, code
        count = calls_since.get(key, 0) + 1
        calls_since[key] = count
        return lines if count < PATIENCE or count % EACH == 0 else None

    write = _Writer(seen, tree, folder)
    atexit.register(write)
    threading.Thread(target=write.forever, daemon=True, name="trace-writer").start()
    threading.settrace(calls)

    def resume() -> None:
        nonlocal left
        left = most_calls or sys.maxsize
        sys.settrace(calls)

    resume()
    return resume, write


def stop(before: Any = None) -> None:
    """Trace nothing more in this thread and in those to come."""
    sys.settrace(before)
    threading.settrace(None)


class _Writer:
    def __init__(self, seen: set[Line], tree: Path, folder: Path) -> None:
        self.seen = seen
        self.tree = tree
        self.folder = folder
        self.written = 0
        self.lock = threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            if len(self.seen) != self.written:
                self._write()

    def _write(self) -> None:
        lines = sorted(self.seen.copy())  # one C call: other threads cannot add in between
        self.written = len(lines)
        cut = len(str(self.tree)) + 1
        text = json.dumps([(test, path[cut:], line) for test, path, line in lines])
        path = self.folder / f"lines-{os.getpid()}.json"
        path.with_suffix(".part").write_text(text)
        path.with_suffix(".part").replace(path)

    def forever(self) -> None:
        while True:
            time.sleep(WRITE_EVERY_S)
            self()


def start_if_asked() -> None:
    """For processes that tests start. Exports for fixtures are the work of no test."""
    if folder := os.environ.get(VARIABLE):
        prepares = not any(Board(Path(folder)).bytes)
        if not (prepares and "export" in sys.orig_argv):
            start(Path(__file__).resolve().parents[2], Path(folder))
