"""Forms as fields."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from sdxl_bento.protocols.http.errors import BodyTooLarge, MalformedBody
from sdxl_bento.protocols.http.forms import read_urlencoded


def read(*pairs: tuple[str, str]) -> dict[str, Any]:
    return read_urlencoded(urlencode(pairs).encode())


def test_values_have_the_types_of_json() -> None:
    fields = read(("width", "64"), ("refiner", "true"), ("seed", "null"), ("sampler", "euler"))
    assert fields == {"width": 64, "refiner": True, "seed": None, "sampler": "euler"}


@pytest.mark.parametrize("text", ["1984", "true", "[1]", '{"a": 1}', "a, b", "€"])
def test_a_prompt_is_text_whatever_it_looks_like(text: str) -> None:
    assert read(("prompt", text), ("negative_prompt", text)) == {
        "prompt": text,
        "negative_prompt": text,
    }


def test_a_prompt_may_be_a_string_of_json() -> None:
    assert read(("prompt", '"a \\"red\\" circle"'), ("prompt_2", "null")) == {
        "prompt": 'a "red" circle',
        "prompt_2": None,
    }


def test_lists_and_objects() -> None:
    pairs = [("size[]", "1"), ("size[]", "2"), ("one[]", "1")]
    pairs += [("loras[][name]", "a"), ("loras[][scale]", "0.5")]
    pairs += [("loras[][name]", "b"), ("loras[][scale]", "1")]
    loras = [{"name": "a", "scale": 0.5}, {"name": "b", "scale": 1}]
    assert read(*pairs) == {"size": [1, 2], "one": [1], "loras": loras}


def test_objects_that_do_not_pair_up() -> None:
    with pytest.raises(MalformedBody, match="as many values of scale"):
        read(("loras[][name]", "a"), ("loras[][scale]", "1"), ("loras[][scale]", "2"))


def test_a_name_that_comes_twice_is_a_list() -> None:
    assert read(("seed", "1"), ("seed", "2")) == {"seed": [1, 2]}


@pytest.mark.parametrize("text", ["1e999", "NaN", "Infinity", "9" * 4000, "[" * 300])
def test_what_json_would_not_take_is_left_to_the_fields_check(text: str) -> None:
    assert read(("width", text)) == {"width": text}


@pytest.mark.parametrize(
    ("body", "error", "allowed"),
    [
        (b"a" + b"[]" * 64 + b"=1", MalformedBody, "names of at most 128 characters"),
        (b"a=1&" * 65, MalformedBody, "at most 64 fields"),
        (b"a=" + b"x" * (1 << 20), BodyTooLarge, "at most 1048576 bytes"),
    ],
)
def test_bounds(body: bytes, error: type[MalformedBody], allowed: str) -> None:
    with pytest.raises(error) as caught:
        read_urlencoded(body)
    assert allowed in caught.value.allowed
