"""Parameters as AUTOMATIC1111's interface writes and reads them."""

from __future__ import annotations

import json
import re

import pytest

from sdxl_bento import __version__
from sdxl_bento.fields import Wire
from sdxl_bento.order import Resolved, Task
from sdxl_bento.params import LoraRef, ResolvedParams
from sdxl_bento.pictures.infotext import embedded, infotext

PARAMS = ResolvedParams(
    prompt="a red circle",
    model="sdxl",
    width=128,
    height=64,
    seed=7,
    sampler="dpmpp_2m_karras",
    num_inference_steps=20,
    guidance_scale=5,
)
# How its page "PNG Info" takes the last line apart, in our words: a name, and then text in quotes
# or up to a comma.
_FACT = re.compile(r'\s*(\w[\w /-]+):\s*("(?:\\.|[^"\\])+"|[^,]*)(?:,|$)')


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and facts, as a reader of the format finds them."""
    *lines, last = text.split("\n")
    prompts, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    facts = {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in _FACT.findall(last)
    }
    return prompts, negative, facts


def order(task: Task = "generate", **changes: object) -> Resolved:
    return Resolved(task, PARAMS.model_copy(update=changes))


def test_the_text_to_the_letter() -> None:
    assert infotext(order(negative_prompt="blurry, dark")) == (
        "a red circle\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, "
        f"Size: 128x64, Model: sdxl, Version: sdxl-bento {__version__}"
    )


def test_a_reader_gets_everything_back() -> None:
    more = {
        "prompt": "one, two: three\nand a second line",
        "model": "sdxl:v1, the best",
        "strength": 0.35,
        "refiner": True,
        "guidance_scale": 7.5,
        "loras": (LoraRef(name="striped", scale=0.8), LoraRef(name="dots")),
    }
    prompt, negative, facts = read(infotext(order("img2img", **more)))
    assert prompt == "one, two: three\nand a second line <lora:striped:0.8> <lora:dots:1>"
    assert negative == ""
    assert facts["Model"] == facts["Refiner"] == "sdxl:v1, the best"
    assert (facts["Denoising strength"], facts["CFG scale"]) == ("0.35", "7.5")
    assert facts["Refiner switch at"] == "0.8"
    assert "Denoising strength" not in infotext(order())


def test_nothing_ends_the_text_of_a_png_early() -> None:
    text = embedded(order(prompt="a\0b"))
    assert all("\0" not in value for value in text.values())
    assert json.loads(text["sdxl-bento"])["prompt"] == "a\0b"


def test_letters_stay_readable_in_quotes() -> None:
    assert 'Model: "größe, ☃"' in infotext(order(model="größe, ☃"))


def test_further_facts_are_written_as_short_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"guidance_rescale": Wire(infotext="CFG Rescale"), "priority": Wire(infotext="Turn")}
    monkeypatch.setattr("sdxl_bento.pictures.infotext.wires", lambda _: named)
    text = infotext(order(guidance_rescale=1.0, priority=1_000_000))
    assert ", CFG Rescale: 1, Turn: 1000000, " in text
