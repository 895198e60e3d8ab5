"""The plain page repeats some of what the package defines, and must not say something else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from sdxl_bento.fields import bounds
from sdxl_bento.params import MAX_PROMPT_CHARS, GenerateParams
from sdxl_bento.ui.pages import api_page, front_page, waiting_page
from sdxl_bento.ui.presets import IDEAS, SHAPES

FIELDS = {
    "width": "width", "height": "height", "steps": "num_inference_steps",
    "guidance": "guidance_scale", "seed": "seed",
}  # fmt: skip


class Elements(HTMLParser):
    """The attributes of a page's elements, by their ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if (name := named.get("id")) is not None:
            self.found[name] = named


PAGE = bytes(front_page().body).decode()
ELEMENTS = Elements(PAGE).found


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_have_the_bounds_of_their_fields(name: str) -> None:
    field = GenerateParams.model_fields[FIELDS[name]]
    low, high = bounds(field)
    element = ELEMENTS[name]
    assert float(element["min"] or "nan") == low
    if "max" in element:
        assert float(element["max"] or "nan") == high
    if "value" in element:
        assert float(element["value"] or "nan") == field.default


def test_prompts_have_the_length_that_is_allowed() -> None:
    for name in ("prompt", "negative"):
        assert ELEMENTS[name]["maxlength"] == str(MAX_PROMPT_CHARS)


def test_every_field_that_is_sent_is_one_of_a_call() -> None:
    request = PAGE.split("function request()", 1)[1].split("\n}", 1)[0]
    always = request.split("const body = {", 1)[1].split("};", 1)[0]
    sent = {*re.findall(r"body\.(\w+) =", request), *re.findall(r"(\w+):", always)}
    assert {"prompt", "num_inference_steps", "width", "loras"} <= sent
    assert sent <= GenerateParams.model_fields.keys()


@pytest.mark.parametrize(("name", "prompts"), [("SHAPES", SHAPES), ("IDEAS", IDEAS)])
def test_both_pages_propose_the_same_prompts(name: str, prompts: tuple[str, ...]) -> None:
    match = re.search(rf"const {name} = (\[.*?\]);", PAGE, re.DOTALL)
    assert match is not None
    assert tuple(json.loads(match[1])) == prompts


def test_no_page_may_be_framed_or_load_from_elsewhere() -> None:
    policy = front_page().headers["content-security-policy"]
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= {
        each.strip() for each in policy.split(";")
    }
    assert front_page().headers["x-content-type-options"] == "nosniff"
    assert waiting_page().headers["cache-control"] == "no-store"
    for page in (front_page(), waiting_page(), api_page()):
        assert not re.search(r"(src|href)=\"?(https?:)?//", bytes(page.body).decode())
