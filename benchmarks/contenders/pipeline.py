"""diffusers' pipeline as its documentation shows it, for the contenders that serve it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from sdxl_bento.serving.loading import folder_of

PNG_LEVEL = 1  # as our server encodes


class Ask(BaseModel):
    """The fields of our native protocol that the benchmark uses."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int


def load(tag: str) -> Any:
    """The base pipeline of an exported model, float32 on the CPU."""
    from diffusers import StableDiffusionXLPipeline

    cls: Any = StableDiffusionXLPipeline
    pipeline = cls.from_pretrained(folder_of(tag) / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, asks: Sequence[Ask]) -> list[bytes]:
    """PNG files. All must want the same steps and guidance: the pipeline has one of each a call."""
    images = pipeline(
        prompt=[ask.prompt for ask in asks],
        num_inference_steps=asks[0].num_inference_steps,
        guidance_scale=asks[0].guidance_scale,
        generator=[torch.Generator().manual_seed(ask.seed) for ask in asks],
    ).images
    return [_png(image) for image in images]


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
