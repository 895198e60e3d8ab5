"""`<lora:name:weight>` in prompts."""

from __future__ import annotations

from typing import Any

import pytest

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.a1111.prompt_syntax import tags_in, without_loras


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a circle", "a circle", []),
        (" as it is ", " as it is ", []),
        ("a <3 b > c", "a <3 b > c", []),
        ("a (circle:1.2)", "a (circle:1.2)", []),
        ("a circle <lora:striped:0.8>", "a circle", [("striped", 0.8)]),
        ("<lora:a b.c-1>a", "a", [("a b.c-1", 1.0)]),
        ("<lora:a:-1>x<lora:b:.5:0.5>", "x", [("a", -1.0), ("b", 0.5)]),
        ("<lyco:a:1>", "", [("a", 1.0)]),
    ],
)
def test_tags(prompt: str, text: str, loras: list[tuple[str, float]]) -> None:
    expected: list[dict[str, Any]] = [{"name": name, "scale": scale} for name, scale in loras]
    assert without_loras(prompt) == (text, expected)


@pytest.mark.parametrize(
    "tag",
    [
        "<lora::1>",
        "<lora:a:b>",
        "<lora:a:nan>",
        "<lora:a:1:0.5>",
        "<lora:a:0.5:1>",
        "<lora:a:1:1:x>",
        "<hypernet:a:1>",
    ],
)
def test_tags_that_mean_nothing_here(tag: str) -> None:
    with pytest.raises(InvalidInput, match="<lora:name:weight>") as caught:
        without_loras(f"a circle {tag}")
    assert (caught.value.field, caught.value.value) == ("prompt", tag)


def test_tags_of_a_prompt_that_is_refused_are_not_searched_for() -> None:
    long = "<lora:a>" * 2001
    assert without_loras(long) == (long, [])
    assert tags_in(long) == []
    assert tags_in(long[:-8]) == ["<lora:a>"] * 2000
