"""Which exit code an error has, whether a server or this process tells of it."""

from __future__ import annotations

import pytest

from sdxl_bento import errors
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.pictures.decode import ImageTooLarge


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("width", 1, "more"), ExitCode.INVALID),
        (errors.AdapterMismatch("striped", ["a"], "of another model"), ExitCode.INVALID),
        (ImageTooLarge("image", "9x9", "fewer pixels"), ExitCode.INVALID),
        (errors.ModelNotFound("none"), ExitCode.NOT_FOUND),
        (errors.ImageNotFound("none"), ExitCode.NOT_FOUND),
        (errors.NotReady("loading"), ExitCode.UNAVAILABLE),
        (errors.Overloaded("full", 3.25), ExitCode.UNAVAILABLE),
        (errors.DeadlineInfeasible(1.0, 2.0, 3.0), ExitCode.UNAVAILABLE),
        (errors.EngineDead("gone"), ExitCode.FAILED),
        (errors.RequestCancelled("cancelled"), ExitCode.FAILED),
        (errors.OutOfMemory("too large"), ExitCode.FAILED),
        (errors.ConfigurationError("wrong"), ExitCode.FAILED),
        (TimeoutError("too long"), ExitCode.FAILED),
    ],
)
def test_exit_codes(error: Exception, code: ExitCode) -> None:
    failure = Failure.of_error(error)
    assert failure.code is code
    assert failure.body["message"] == str(failure) == str(error)


def test_when_to_try_again() -> None:
    overloaded = Failure.of_error(errors.Overloaded("full", 3.25))
    assert overloaded.line == "full (try again in 3.25 s)"
    assert Failure.of_error(errors.ModelNotFound("x")).line == "no model named 'x'"
