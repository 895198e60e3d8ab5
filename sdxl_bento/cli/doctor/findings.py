"""What a check finds, and running checks so that none can take the others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, ParamSpec

# `problem`: it keeps the service from starting, or from answering. `warning`: it costs something.
Status = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `about` is what was looked at, `mend` what to do about it."""

    status: Status
    about: str
    message: str
    mend: str = ""


Arguments = ParamSpec("Arguments")


def good(about: str, message: str) -> Finding:
    return Finding("good", about, message)


def note(about: str, message: str, mend: str = "") -> Finding:
    return Finding("note", about, message, mend)


def warning(about: str, message: str, mend: str = "") -> Finding:
    return Finding("warning", about, message, mend)


def problem(about: str, message: str, mend: str = "") -> Finding:
    return Finding("problem", about, message, mend)


def run(
    check: Callable[Arguments, Iterable[Finding]],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Iterator[Finding]:
    """What a check finds. One that fails itself is a finding, too."""
    try:
        yield from check(*args, **kwargs)
    except Exception as error:
        name = check.__name__.strip("_").replace("_", " ")
        yield warning(name, f"this check itself failed: {type(error).__name__}: {error}")
