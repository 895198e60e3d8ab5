"""The bounds of `GenerateParams`, and how an error in them is put into words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import MAX_SEED, GenerateParams
from sdxl_bento.protocols.http.validation import parse_params


def test_a_prompt_is_enough() -> None:
    params = GenerateParams(prompt="a red circle")
    assert (params.num_inference_steps, params.guidance_scale, params.num_images) == (25, 5.0, 1)
    assert (params.width, params.height, params.seed, params.sampler) == (None,) * 4


def test_guidance_counts_from_above_one() -> None:
    assert GenerateParams(prompt="", guidance_scale=1.01).uses_guidance
    assert not GenerateParams(prompt="", guidance_scale=1.0).uses_guidance


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        GenerateParams(prompt="").prompt = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "field", "value", "allowed"),
    [
        ({}, "prompt", None, "text of at most 8000 characters; it is required"),
        ({"prompt": 5}, "prompt", 5, "text of at most 8000 characters"),
        ({"width": 63}, "width", 63, "an integer from 64 to 4096, or null"),
        ({"height": 4097}, "height", 4097, "an integer from 64 to 4096, or null"),
        ({"width": "wide"}, "width", "wide", "an integer from 64 to 4096, or null"),
        ({"num_inference_steps": 0}, "num_inference_steps", 0, "an integer from 1 to 200"),
        ({"num_inference_steps": 2.5}, "num_inference_steps", 2.5, "an integer from 1 to 200"),
        ({"guidance_scale": -1}, "guidance_scale", -1, "a number from 0.0 to 50.0"),
        ({"strength": 0}, "strength", 0, "a number over 0.0 to 1.0"),
        ({"high_noise_frac": 1}, "high_noise_frac", 1, "a number over 0.0 under 1.0"),
        ({"seed": -1}, "seed", -1, f"an integer from 0 to {MAX_SEED}, or null"),
        ({"num_images": 17}, "num_images", 17, "an integer from 1 to 16"),
        ({"output_format": "gif"}, "output_format", "gif", "one of png, webp, jpeg"),
        ({"refiner": "perhaps"}, "refiner", "perhaps", "true or false"),
        ({"slo_ms": 0}, "slo_ms", 0, "a number over 0 to 3600000, or null"),
        ({"original_size": [1]}, "original_size.1", None, "an integer from 0 to 8192; it is req"),
        ({"original_size": [1, "x"]}, "original_size.1", "x", "an integer from 0 to 8192"),
        ({"loras": 5}, "loras", 5, "a list of at most 8 items, each an object with name, scale"),
        ({"loras": [{"name": "a", "scale": 9}]}, "loras.0.scale", 9, "a number from -8.0 to 8.0"),
        ({"refiner": 1}, "refiner", 1, "true or false"),
        ({"refiner": "yes"}, "refiner", "yes", "true or false"),
        ({"priority": True}, "priority", True, "an integer from -10"),
        ({"target_size": [True, 64]}, "target_size", [True, 64], "a list of 2 items"),
        ({"loras": [{"name": "a", "scale": False}]}, "loras.0.scale", False, "a number"),
        ({"loras": [{"nam": "a"}]}, "loras.0.name", None, "text of at most 200 characters"),
    ],
)
def test_an_error_names_field_value_and_what_is_allowed(
    fields: dict[str, Any], field: str, value: object, allowed: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_params({"prompt": "a"} | fields if fields else {})
    assert (caught.value.field, caught.value.value) == (field, value)
    assert caught.value.allowed.startswith(allowed)
    assert field in str(caught.value)


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match=r"num_inference_steps \(the nearest\), or one of"):
        parse_params({"prompt": "a", "num_inference_step": 5})


def test_an_unknown_sampler_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"one of euler, euler_a, .*, tcd"):
        parse_params({"prompt": "a", "sampler": "heun"})


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"degrade_min_steps": 5}, "degrade_min_steps", "needs slo_ms"),
        ({"degrade_min_steps": 30, "slo_ms": 9}, "degrade_min_steps", "at most num_inference"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed", "must be at most"),
        ({"loras": [{"name": "a"}, {"name": "a"}]}, "loras", "names one adapter twice"),
    ],
)
def test_checks_across_fields(fields: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_params({"prompt": "a"} | fields)
    assert caught.value.field == field
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("body", [None, 5, "text", [], [{"prompt": "a"}]])
def test_a_body_that_is_no_object(body: object) -> None:
    with pytest.raises(InvalidInput, match="a JSON object"):
        parse_params(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
_NAMES = st.sampled_from([*GenerateParams.model_fields, "image", "steps"])


# The first draw builds tables of Unicode, which takes seconds on a busy machine.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_NAMES, _JSON, max_size=4))
def test_any_json_is_taken_or_refused_by_name(fields: dict[str, Any]) -> None:
    try:
        params = parse_params({"prompt": "a"} | fields)
    except InvalidInput as error:
        assert error.field.split(".")[0] in {*fields, "body"}
        assert error.allowed
    else:
        assert GenerateParams.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["guidance_scale", "slo_ms", "strength", "seed"])
def test_numbers_are_finite(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        GenerateParams.model_validate({"prompt": "a", field: value})
