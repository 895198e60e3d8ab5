"""The results of checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A problem keeps the service from starting or from answering; a warning costs something.
Status = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `about` names what was checked, `mend` says how to fix it."""

    status: Status
    about: str
    message: str
    mend: str = ""


def good(about: str, message: str) -> Finding:
    """All is well."""
    return Finding("good", about, message)


def note(about: str, message: str, mend: str = "") -> Finding:
    """Information that needs no action."""
    return Finding("note", about, message, mend)


def warning(about: str, message: str, mend: str = "") -> Finding:
    """The service works, but something is lost."""
    return Finding("warning", about, message, mend)


def problem(about: str, message: str, mend: str = "") -> Finding:
    """The service cannot start, or cannot answer."""
    return Finding("problem", about, message, mend)
