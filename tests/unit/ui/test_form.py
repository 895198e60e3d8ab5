"""The page's form and the fields of a call are the same thing, there and back."""

from __future__ import annotations

import pytest

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.ui.form import (
    MAX_LORAS,
    Form,
    from_call,
    keep_weights,
    parse_size,
    to_call,
    to_refining,
    without_base,
)

FULL = Form(
    prompt="a red circle",
    model="m",
    size="1216 × 832",
    random=False,
    seed="9223372036854775807",
    controls={
        "negative_prompt": "a square",
        "num_images": 1,
        "num_inference_steps": 30,
        "guidance_scale": 7.5,
        "sampler": "euler_a",
        "refiner": True,
        "strength": 0.6,
    },
    loras=["b", "a"],
    weights=(0.5, -1.25, *(1.0,) * (MAX_LORAS - 2)),
)


def test_a_call_has_what_the_form_has() -> None:
    params = parse_params(to_call(FULL))
    assert (params.width, params.height, params.seed) == (1216, 832, 2**63 - 1)
    assert [(lora.name, lora.scale) for lora in params.loras] == [("b", 0.5), ("a", -1.25)]
    assert from_call(params.model_dump(mode="json"), 2**63 - 1, with_picture=False) == FULL
    assert Form.of(FULL.values()) == FULL


def test_what_is_left_empty_stays_unset() -> None:
    params = parse_params(to_call(Form(prompt="x")))
    asked = params.model_fields_set
    assert asked == {"prompt", "num_images", "num_inference_steps", "guidance_scale"}
    assert "seed" not in to_call(Form(prompt="x", random=True, seed="7"))


def test_strength_comes_back_only_where_it_meant_something() -> None:
    call = GenerateParams(prompt="x", model="m", width=64, height=64, strength=0.3)
    fields = call.model_dump(mode="json")
    assert from_call(fields, 1, with_picture=False).controls["strength"] == 0.6
    assert from_call(fields, 1, with_picture=True).controls["strength"] == 0.3


@pytest.mark.parametrize("text", ["1024x768", "1024 × 768", " 1024*768 ", "1024 768"])
def test_sizes_are_read_as_people_write_them(text: str) -> None:
    assert parse_size(text) == (1024, 768)


@pytest.mark.parametrize("text", ["1024", "1024 ×", "big", "-1 x 5", "1.5 x 2"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="size"):
        parse_size(text)


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_prompt_is_needed(prompt: str) -> None:
    with pytest.raises(InvalidInput, match="prompt"):
        to_call(Form(prompt=prompt))


def test_weights_stay_with_their_adapters() -> None:
    ones = (1.0,) * (MAX_LORAS - 2)
    assert keep_weights(["a", "b"], ["b", "c"], (0.5, 0.7, *ones)) == (0.7, 1.0, *ones)
    assert keep_weights([], [], ()) == (1.0,) * MAX_LORAS


def test_refining_keeps_what_the_refiner_takes() -> None:
    call = parse_params(to_call(FULL)).model_dump(mode="json")
    fields = to_refining(call, 5)
    assert parse_params(fields).seed == 5
    assert fields["negative_prompt"] == "a square"
    assert not {"loras", "refiner", "width", "height"} & fields.keys()
    assert not {"loras", "refiner"} & without_base(to_call(FULL)).keys()


def test_one_picture_is_asked_for_again_not_all_of_its_call() -> None:
    call = GenerateParams(prompt="x", model="m", width=64, height=64, num_images=4)
    form = from_call(call.model_dump(mode="json"), 3, with_picture=False)
    assert (form.controls["num_images"], form.random, form.seed) == (1, False, "3")
