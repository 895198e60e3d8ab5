"""What the export tells its user: stages with their time, to stderr; the tag, to stdout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

LONG = 5.0  # seconds from which on a stage is announced where nothing can move


class Durations:
    """How long each stage took the last time, kept in one JSON file between exports.

    Only ever a help: a file that cannot be read or written is as good as none.
    """

    MOST = 500

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}
        if path is not None:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self._seconds = {str(title): float(seconds) for title, seconds in found.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self._seconds = {}

    def expected(self, title: str) -> float | None:
        """Seconds of the last time; None if there was none."""
        return self._seconds.get(title)

    def note(self, title: str, seconds: float) -> None:
        """Remember a stage that has ended well."""
        self._seconds.pop(title, None)
        self._seconds[title] = round(seconds, 2)
        for oldest in list(self._seconds)[: -self.MOST]:
            del self._seconds[oldest]
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{time.monotonic_ns()}.tmp")
            draft.write_text(json.dumps(self._seconds, indent=1), encoding="utf-8")
            draft.replace(self._path)
        except OSError:
            return


class _Running:
    """A line with spinner, title, seconds so far and seconds expected."""

    def __init__(self, title: str, expected: float | None) -> None:
        self._spinner = Spinner("dots", escape(title))
        self._title = title
        self._about = "" if expected is None else f" of about {expected:.0f}"
        self._started = time.perf_counter()

    def __rich__(self) -> RenderableType:
        elapsed = time.perf_counter() - self._started
        self._spinner.update(text=f"{escape(self._title):<42} {elapsed:6.1f}{self._about} s")
        return self._spinner


class Progress:
    """Prints one line for each stage; on a terminal, with a spinner and its time as it runs."""

    def __init__(self, console: Console | None = None, durations: Durations | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._durations = durations or Durations()

    def say(self, text: str) -> None:
        """One line, literally."""
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time the enclosed work, and say when it is done or has failed."""
        expected = self._durations.expected(title)
        started = time.perf_counter()
        mark = "[red]x[/]"
        try:
            with self._running(title, expected):
                yield
            mark = "[green]+[/]"
            self._durations.note(title, time.perf_counter() - started)
        finally:
            elapsed = time.perf_counter() - started
            self.console.print(f"{mark} {escape(title):<44} {elapsed:6.1f} s", soft_wrap=True)

    @contextmanager
    def _running(self, title: str, expected: float | None) -> Iterator[None]:
        if self.console.is_terminal:
            running = _Running(title, expected)
            with Live(running, console=self.console, transient=True, refresh_per_second=8):
                yield
            return
        if expected is not None and expected >= LONG:
            self.say(f"  {title}: about {expected:.0f} s")
        yield
