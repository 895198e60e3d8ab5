"""Whatever JSON comes in, an adapter answers with fields or with an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.a1111 import fields as a1111_fields
from sdxl_bento.protocols.a1111.samplers import sampler_of
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.protocols.openai import fields as openai_fields
from sdxl_bento.sampler_names import A1111_SAMPLERS, a1111_name

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["", "auto", "64x64", "png", "Euler a", "Karras", "automatic", "refiner", -1]),
    st.binary(max_size=4),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
OPENAI = [*openai_fields.OWN, *openai_fields.IGNORED, *GenerateParams.model_fields, "mask", "x"]
A1111 = [
    *[
        "steps",
        "cfg_scale",
        "mask",
        "eta",
        "hr_x",
        "enable_hr",
        "styles",
        "script_args",
        "subseed",
        "width",
        "slo_ms",
        "x",
    ],
    *[
        "prompt",
        "negative_prompt",
        "seed",
        "batch_size",
        "n_iter",
        "sampler_name",
        "sampler_index",
        "scheduler",
    ],
    *["override_settings", "refiner_checkpoint", "refiner_switch_at", "denoising_strength"],
    *["init_images", "send_images", "resize_mode", "tiling"],
]


def openai(body: object, noted: Translation) -> object:
    return openai_fields.to_native(body, "img2img", noted)[0]


def a1111(body: object, noted: Translation) -> object:
    return a1111_fields.to_native(body, None, "img2img", noted)


@pytest.mark.parametrize(("translated", "names"), [(openai, OPENAI), (a1111, A1111)])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_other_errors(
    translated: Callable[[object, Translation], object], names: list[str], data: st.DataObject
) -> None:
    body: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=4))
    noted = Translation()
    try:
        fields = translated({"prompt": "a"} | body, noted)
        assert isinstance(fields, dict)
        fields.pop("image", None)
        fields.pop("image_id", None)
        parse_params(fields)
    except SDXLError as error:
        assert isinstance(error, InvalidInput)
        assert str(noted.told(error))


@given(body=VALUES)
def test_bodies_that_are_no_objects(body: object) -> None:
    for translated in (openai, a1111):
        if not isinstance(body, dict):
            assert translated(body, Translation()) == body


def test_samplers_there_and_back() -> None:
    ours = {sampler for schedulers in A1111_SAMPLERS.values() for sampler in schedulers.values()}
    for sampler in ours:
        assert sampler_of(*a1111_name(sampler)) == sampler
