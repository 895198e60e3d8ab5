"""Loads the shipped pipelines and draws pictures for scenes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from export.embedded import WEIGHTS
from export.embedded.captions import plain_caption
from export.embedded.images import SQUARE, Size
from export.embedded.networks import BasePipeline, Pipeline, RefinerPipeline
from export.embedded.scenes import Scene

_HANDOVER = 0.8  # share of the steps that the base takes when the refiner follows


def _quiet(pipeline: Pipeline) -> Pipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


def load_base(weights: Path = WEIGHTS) -> Pipeline:
    """The text-to-image pipeline in single precision."""
    return _quiet(BasePipeline.from_pretrained(weights / "base", add_watermarker=False))


def load_refiner(weights: Path = WEIGHTS) -> Pipeline:
    """The refiner in single precision."""
    return _quiet(RefinerPipeline.from_pretrained(weights / "refiner", add_watermarker=False))


def _generators(count: int, seed: int) -> list[torch.Generator]:
    """One generator per picture, so that a picture does not depend on its batch."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def draw_scenes(
    base: Pipeline,
    scenes: Sequence[Scene],
    *,
    size: Size = SQUARE,
    seed: int = 1000,
    steps: int = 25,
    guidance: float = 5.0,
    refiner: Pipeline | None = None,
    batch: int = 8,
) -> list[Image.Image]:
    """One picture per scene; picture ``i`` starts from the noise of ``seed + i``."""
    pictures: list[Image.Image] = []
    for start in range(0, len(scenes), batch):
        prompts = [plain_caption(scene) for scene in scenes[start : start + batch]]
        common: dict[str, Any] = {
            "prompt": prompts,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "generator": _generators(len(prompts), seed + start),
        }
        extra = {"denoising_end": _HANDOVER, "output_type": "latent"} if refiner else {}
        drawn = base(width=size[0], height=size[1], **common, **extra).images
        if refiner is not None:
            drawn = refiner(image=drawn, denoising_start=_HANDOVER, **common).images
        pictures += drawn
    return pictures
