"""Options → the fields of a call."""

from __future__ import annotations

import pytest
import typer

from sdxl_bento.cli import fields
from sdxl_bento.params import GenerateParams


def test_what_is_not_given_is_left_out() -> None:
    assert fields.only_set(prompt="x", seed=None, strength=0.0) == {"prompt": "x", "strength": 0.0}


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("striped", {"name": "striped"}),
        ("striped=0.8", {"name": "striped", "scale": 0.8}),
        ("striped:-1", {"name": "striped", "scale": -1.0}),
        ("a:b=0.5", {"name": "a:b", "scale": 0.5}),
    ],
)
def test_lora(text: str, lora: dict[str, object]) -> None:
    assert fields.loras([text]) == [lora]
    GenerateParams.model_validate({"prompt": "x", "loras": [lora]})


def test_sizes() -> None:
    assert fields.width_and_height("1024x768", None, None) == (1024, 768)
    assert fields.width_and_height(None, 64, None) == (64, None)
    assert fields.height_and_width("1024X768", "--original-size") == [768, 1024]
    assert fields.pair("3, 4", "--crops-coords-top-left", ",") == [3, 4]
    assert fields.pair(None, "--crops-coords-top-left", ",") is None


def test_numbers() -> None:
    assert fields.numbers("1, 4,16", "--clients") == [1, 4, 16]
    for wrong in ("", "0", "1,,2", "1.5"):
        with pytest.raises(typer.BadParameter):
            fields.numbers(wrong, "--clients")
