"""Which fields of a call the text encoders read, and what of them they leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdxl_bento.engine.request import Stage

if TYPE_CHECKING:
    from sdxl_bento.diffusion.model import Model
    from sdxl_bento.diffusion.tokens import Unread
    from sdxl_bento.manifest import PipelineInfo
    from sdxl_bento.order import Resolved
    from sdxl_bento.params import ResolvedParams


def prompt_fields(params: ResolvedParams, zero_negative: bool) -> list[tuple[str, str]]:
    """The fields that the two encoders read: for the positive prompt, and for the negative one.

    `zero_negative`: zeros stand for the negative prompt, so it is not read.
    """
    fields = [("prompt", "prompt_2" if params.prompt_2 else "prompt")]
    if params.uses_guidance and not zero_negative:
        second = "negative_prompt_2" if params.negative_prompt_2 else "negative_prompt"
        fields.append(("negative_prompt", second))
    return fields


def zeroes_negative(params: ResolvedParams, info: PipelineInfo) -> bool:
    """Whether zeros stand for the negative prompt, as in SDXL base where it is unset."""
    return params.negative_prompt is None and info.force_zeros_for_empty_prompt


def unread(order: Resolved, model: Model) -> list[Unread]:
    """What the encoders of all stages of a call do not read, at most once for each field."""
    found: dict[str, Unread] = {}
    for stage in _stages(order):
        pipeline = model.pipeline(stage)
        for fields in prompt_fields(order.params, zeroes_negative(order.params, pipeline.info)):
            for field, counter in zip(fields, pipeline.counters, strict=False):
                rest = counter.unread(field, getattr(order.params, field) or "")
                if rest is not None and (field not in found or rest.read < found[field].read):
                    found[field] = rest
    return list(found.values())


def _stages(order: Resolved) -> tuple[Stage, ...]:
    """The stages that denoise."""
    if order.task == "refine":
        return (Stage.REFINE,)
    return (Stage.BASE, Stage.REFINE) if order.params.refiner else (Stage.BASE,)
