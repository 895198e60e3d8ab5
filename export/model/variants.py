"""Distilled variants of SDXL, recognised by the scheduler that they are published with.

Turbo, Lightning and LCM have SDXL's architecture; only their weights differ. They are recognised by
the scheduler's config: few steps from a consistency model need `LCMScheduler` or `TCDScheduler`;
adversarial distillation starts at the last timestep (`timestep_spacing="trailing"`), with an
ancestral Euler sampler in SDXL Turbo (arXiv 2311.17042) and a plain one in SDXL Lightning (arXiv
2402.13929). A single checkpoint file holds no such config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_bento.manifest import Variant

_TRAILING = {"timestep_spacing": "trailing"}

SCHEDULERS: Mapping[Variant, Mapping[str, Any]] = {
    "base": {},
    "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", **_TRAILING},
    "lightning": {"_class_name": "EulerDiscreteScheduler", **_TRAILING},
    "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 50},
}
"""For each variant the values of its scheduler's config that differ from the base model's."""


def recognise(scheduler: Mapping[str, Any]) -> Variant:
    """The variant that a scheduler's config belongs to; "base" if it cannot be told."""
    name = scheduler.get("_class_name")
    if name in ("LCMScheduler", "TCDScheduler"):
        return "lcm"
    # Models with a zero terminal signal start at the last timestep too, and are not distilled.
    if scheduler.get("rescale_betas_zero_snr") or scheduler.get("prediction_type") not in (
        None, "epsilon"
    ):  # fmt: skip
        return "base"
    if scheduler.get("timestep_spacing") == "trailing":
        variants: Mapping[object, Variant] = {
            "EulerAncestralDiscreteScheduler": "turbo",
            "EulerDiscreteScheduler": "lightning",
        }
        return variants.get(name, "base")
    return "base"
