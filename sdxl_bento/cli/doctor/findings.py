"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `problem`: it keeps the service from starting, or from answering. `warning`: it costs something.
Status = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `about` is what was looked at, `mend` what to do about it."""

    status: Status
    about: str
    message: str
    mend: str = ""


def good(about: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding("good", about, message)


def note(about: str, message: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding("note", about, message, mend)


def warning(about: str, message: str, mend: str = "") -> Finding:
    """It costs something."""
    return Finding("warning", about, message, mend)


def problem(about: str, message: str, mend: str = "") -> Finding:
    """It stops serving."""
    return Finding("problem", about, message, mend)
