"""Which models are told apart by their scheduler's config, and which are not."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from export.model import variants
from sdxl_bento.manifest import Variant

EULER = "EulerDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize(
    ("config", "variant"),
    [
        ({"_class_name": EULER, "timestep_spacing": "leading"}, "base"),
        ({"_class_name": EULER}, "base"),
        ({"_class_name": ANCESTRAL, "timestep_spacing": "trailing"}, "turbo"),  # as published
        ({"_class_name": EULER, "timestep_spacing": "trailing"}, "lightning"),
        ({"_class_name": "LCMScheduler", "timestep_spacing": "leading"}, "lcm"),
        ({"_class_name": "TCDScheduler"}, "lcm"),
        # Not distilled, though they start at the last timestep.
        ({"_class_name": EULER, "timestep_spacing": "trailing",
          "prediction_type": "v_prediction"}, "base"),
        ({"_class_name": EULER, "timestep_spacing": "trailing",
          "rescale_betas_zero_snr": True}, "base"),
        # Could be any.
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, "base"),
        ({}, "base"),
    ],
)  # fmt: skip
def test_recognised(config: dict[str, Any], variant: str) -> None:
    assert variants.recognise(config) == variant


@pytest.mark.parametrize("variant", get_args(Variant))
def test_the_scheduler_that_is_written_is_recognised(variant: Variant) -> None:
    config = {"_class_name": EULER, "timestep_spacing": "leading", "prediction_type": "epsilon"}
    assert variants.recognise(config | dict(variants.SCHEDULERS[variant])) == variant
