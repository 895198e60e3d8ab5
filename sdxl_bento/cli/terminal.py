"""Output: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.errors import SDXLError

if TYPE_CHECKING:
    from rich.console import Console


def stderr() -> Console:
    """The console for progress, notices and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line to stderr, without interpreting markup in it."""
    from rich.markup import escape

    stderr().print(escape(text))


def emit_json(document: object) -> None:
    """Print a result to stdout as JSON."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def emit_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result to stdout as a table. A heading that begins with ">" aligns to the right."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        side = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:  # lines of a file or a pipe are not wrapped
        console.width = 1000
    console.print(table)


@contextmanager
def reporting(as_json: bool = False) -> Iterator[None]:
    """Report an error inside, and end the command with its exit code.

    The report is one line on stderr and, with `as_json`, `{"error": …}` on stdout.
    """
    try:
        yield
    except (Failure, SDXLError) as error:
        failure = error if isinstance(error, Failure) else Failure.of_error(error)
        if as_json:
            emit_json({"error": failure.body})
        say(f"Error: {failure.line}")
        raise typer.Exit(failure.code) from None
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def size_text(count: float) -> str:
    """A number of bytes for people to read: "6.9 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
