"""Progress of an export: its stages and their durations, printed to stderr."""

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

LONG = 5.0  # seconds; a stage that takes longer is announced where there is no spinner


class Durations:
    """The duration of each stage in the previous export, kept in a JSON file.

    It is a convenience: a file that cannot be read or written is treated as missing.
    """

    MOST = 500

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}
        if path is not None:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self._seconds = {str(title): float(seconds) for title, seconds in content.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self._seconds = {}

    def expected(self, title: str) -> float | None:
        """Seconds that the stage took last; None if it is not known."""
        return self._seconds.get(title)

    def note(self, title: str, seconds: float) -> None:
        """Remember the duration of a stage that has succeeded."""
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
        self._expected = "" if expected is None else f" of about {expected:.0f}"
        self._started = time.perf_counter()

    def __rich__(self) -> RenderableType:
        elapsed = time.perf_counter() - self._started
        self._spinner.update(text=f"{escape(self._title):<42} {elapsed:6.1f}{self._expected} s")
        return self._spinner


class Progress:
    """Prints a line for each stage. On a terminal, a running stage shows a spinner and its time."""

    def __init__(self, console: Console | None = None, durations: Durations | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._durations = durations or Durations()

    def say(self, text: str) -> None:
        """Print one line, without interpreting markup."""
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time the enclosed work, and print whether it has succeeded or failed."""
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
