"""The exception tree and its messages."""

from __future__ import annotations

import inspect
import re

import pytest

from sdxl_bento import errors


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"^[│├└─ ]*([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    members = inspect.getmembers(errors, inspect.isclass)
    real = {name for name, cls in members if issubclass(cls, Exception)}
    assert real <= set(drawn)


def test_messages() -> None:
    assert str(errors.InvalidInput("width", 100, "a multiple of 8")) == (
        "width: got 100, allowed: a multiple of 8"
    )
    assert str(errors.ModelNotFound("x", ["a", "b"], hint="export it")) == (
        "no model named 'x'; available: a, b; export it"
    )
    assert "'lora_9'" not in str(errors.AdapterMismatch("x", [f"k{i}" for i in range(9)], "why"))
    assert "1500 ms" in str(errors.DeadlineInfeasible(1.5, 3.0, 1.0))


@pytest.mark.parametrize("value", ["x" * 1000, list(range(1000)), b"\0" * 1000])
def test_a_value_is_shown_short(value: object) -> None:
    assert len(str(errors.InvalidInput("f", value, "less"))) < 120
