"""How a command fails: exit codes, and one form for the errors of a server and of this process.

That form is the body that the native protocol has for errors (docs/guides/native.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Self


class ExitCode(IntEnum):
    """The exit codes of every command; those of signals are 128 and the signal's number."""

    OK = 0
    FAILED = 1
    USAGE = 2  # typer ends with it when it cannot parse the command line
    INVALID = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    UNREACHABLE = 6
    INTERRUPTED = 130


_CODES: Mapping[int, ExitCode] = {
    400: ExitCode.INVALID,
    404: ExitCode.NOT_FOUND,
    413: ExitCode.INVALID,
    415: ExitCode.INVALID,
    422: ExitCode.INVALID,
    429: ExitCode.UNAVAILABLE,
    503: ExitCode.UNAVAILABLE,
}


class Failure(Exception):
    """The command cannot do what was asked. `body` has at least `type` and `message`."""

    def __init__(self, code: ExitCode, body: Mapping[str, Any]) -> None:
        self.code = code
        self.body = dict(body)
        super().__init__(str(self.body["message"]))

    @classmethod
    def of(cls, code: ExitCode, kind: str, message: str) -> Self:
        """A failure that the command itself has found."""
        return cls(code, {"type": kind, "message": message})

    @classmethod
    def of_status(cls, status: int, body: Mapping[str, Any]) -> Self:
        """A server's error: its status and its body."""
        code = _CODES.get(status, ExitCode.FAILED)
        if (
            body.get("type") == "engine_dead"
        ):  # trying again is no use, unlike with other errors of 503
            code = ExitCode.FAILED
        return cls(code, body)

    @classmethod
    def of_error(cls, error: Exception) -> Self:
        """An exception of this package, in the form that a server would answer it."""
        from sdxl_bento.protocols.http.errors import error_body, status_of

        return cls.of_status(int(status_of(error)), error_body(error)["error"])

    @property
    def line(self) -> str:
        """The message, and when a retry makes sense."""
        wait = self.body.get("retry_after_s")
        again = f" (try again in {max(float(wait), 0.1):.3g} s)" if wait is not None else ""
        return f"{self}{again}"
