"""The parameters that a picture depends on, as the body of a call that draws it again."""

from __future__ import annotations

from typing import Any

from sdxl_bento.order import Resolved

# Fields that say when and how a call is run. They change nothing in its pictures.
_SCHEDULING = {"slo_ms", "priority", "degrade_min_steps"}


def describe(order: Resolved) -> dict[str, Any]:
    """All parameters that a picture depends on, as the body of a call to the route of its task.

    Two calls that draw the same picture have the same description: parameters without effect are
    left out, and adapters are sorted by name.
    """
    params = order.params
    unused = set(_SCHEDULING)
    if not order.redraws:
        unused.add("strength")
    if not params.refiner:
        unused.add("high_noise_frac")
        if order.task != "refine":
            unused |= {"aesthetic_score", "negative_aesthetic_score"}
    if not params.lora_late_ok or not params.loras:
        unused.add("lora_late_ok")
    if params.output_format == "png":
        unused.add("output_quality")
    described = params.model_dump(mode="json", exclude=unused, exclude_none=True)
    described["loras"] = sorted(described["loras"], key=lambda lora: str(lora["name"]))
    return described
