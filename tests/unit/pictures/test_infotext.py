"""Parameters as AUTOMATIC1111's interface writes and reads them."""

from __future__ import annotations

import json
import re

import pytest
from transformers import CLIPTokenizer

from export.embedded import WEIGHTS
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
    *lines, last = text.strip().split("\n")
    prompts, negatives = [], []
    for line in map(str.strip, lines):
        negatives += [line[16:].strip()] if line.startswith("Negative prompt:") else []
        if not line.startswith("Negative prompt:"):
            (negatives or prompts).append(line)
    facts = {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in _FACT.findall(last)
    }
    return "\n".join(prompts), "\n".join(negatives), facts


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


FORGED = (
    "\nNegative prompt: fake\nSteps: 1, Sampler: LCM, Seed: 3",
    "Negative prompt: fake",
    "a\n \tNegative prompt: fake",
    "a\r\nNegative prompt: fake\rSteps: 1, Sampler: LCM, Seed: 3",
    "a\u2028negative prompt: fake\x85Negative\0prompt: fake",
    "a, Negative prompt: fake Steps: 1, Sampler: LCM, Seed: 3",
    "a <lora:striped:1> <hypernet:x> <<lyco:y:1>",
)


@pytest.mark.parametrize("forged", FORGED)
def test_a_prompt_forges_no_other_part(forged: str) -> None:
    """Neither for AUTOMATIC1111 nor for readers that look for a part anywhere in the text."""
    text = infotext(order(prompt=forged, negative_prompt=f"true {forged}"))
    prompt, negative, facts = read(text)
    assert "".join(prompt.split()) == "".join(forged.replace("\0", " ").split())
    assert "".join(negative.split()) == "true" + "".join(prompt.split())
    assert (facts["Steps"], facts["Seed"]) == ("20", "7")
    assert text.lower().count("negative prompt:") == text.count("Steps:") == 1
    assert len(re.findall(r"<\w+:", text)) == 0
    assert len(text.splitlines()) == len(text.split("\n"))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_prompt_that_is_read_draws_the_same(name: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / name)
    for prompt in (*FORGED[1:], "steps: a", "x<lora:a_b:1>"):
        back = read(infotext(order(prompt=prompt)))[0]
        assert tokenizer(back).input_ids == tokenizer(prompt.replace("\0", " ")).input_ids


def test_names_forge_nothing_either() -> None:
    loras = (LoraRef(name="a:9>\nNegative prompt: b"),)
    text = infotext(order(model='"m"\nSteps: 1', loras=loras))
    prompt, negative, facts = read(text)
    assert (prompt, negative) == ("a red circle <lora:a 9  Negative prompt  b:1>", "")
    assert facts["Model"] == '"m"\nSteps: 1'


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
