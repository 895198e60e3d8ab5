"""What the export tells its user: stages with their time, to stderr; the tag, to stdout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Progress:
    """Prints one line for each stage; on a terminal, with a spinner while it runs."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """One line, literally."""
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time the enclosed work, and say when it is done or has failed."""
        started = time.perf_counter()
        mark = "[red]x[/]"
        try:
            if self.console.is_terminal:
                with self.console.status(escape(title)):
                    yield
            else:
                yield
            mark = "[green]+[/]"
        finally:
            elapsed = time.perf_counter() - started
            self.console.print(f"{mark} {escape(title):<44} {elapsed:6.1f} s", soft_wrap=True)
