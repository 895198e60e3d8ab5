"""Progress of a download: a bar on a terminal, otherwise a line for each tenth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from export.source.remote import Advance

TENTHS = 10


@contextmanager
def show_transfer(console: Console, title: str, total: int | None) -> Iterator[Advance]:
    """Show a download of `total` bytes. Call the yielded function with each count that arrives."""
    if not console.is_terminal:
        yield _lines(console, title, total)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escape(title), total=total)
        yield lambda more: bar.advance(task, more)


def _lines(console: Console, title: str, total: int | None) -> Advance:
    done, told = 0, 0

    def advance(more: int) -> None:
        nonlocal done, told
        done += more
        tenth = TENTHS * done // total if total else 0
        if tenth > told and total:
            told = tenth
            console.print(
                f"  {escape(title)}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", soft_wrap=True
            )

    return advance
