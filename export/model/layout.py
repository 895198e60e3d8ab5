"""The allowed content of an SDXL pipeline folder: components, their classes, their files.

A class that is not named here is refused, and a file that is not named here is not copied. No code
of a source is ever imported or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdxl_bento.manifest import Role

Library = Literal["diffusers", "transformers"]

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

VOCABULARY = ("vocab.json", "merges.txt")

# Schedulers with a noise schedule like SDXL's (betas and a prediction type). Only the schedule is
# read from their config; the sampler is chosen by each request.
SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class Kind:
    """How one component is stored. `stem` begins the names of weight files; None: it has none."""

    library: Library
    classes: tuple[str, ...]
    config: str
    stem: str | None = None
    extra_files: tuple[str, ...] = ()


_TOKENIZER = Kind(
    "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json",
    extra_files=TOKENIZER_FILES,
)  # fmt: skip

KINDS: Mapping[str, Kind] = {
    "scheduler": Kind("diffusers", SCHEDULERS, "scheduler_config.json"),
    "text_encoder": Kind("transformers", ("CLIPTextModel",), "config.json", "model"),
    "text_encoder_2": Kind(
        "transformers", ("CLIPTextModelWithProjection",), "config.json", "model"
    ),
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "unet": Kind("diffusers", ("UNet2DConditionModel",), "config.json", "diffusion_pytorch_model"),
    "vae": Kind("diffusers", ("AutoencoderKL",), "config.json", "diffusion_pytorch_model"),
}

COMPONENTS: Mapping[Role, tuple[str, ...]] = {
    "base": (
        "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
    ),
    "refiner": ("scheduler", "text_encoder_2", "tokenizer_2", "unet", "vae"),
}  # fmt: skip

# Components that are not needed to draw a picture from a prompt. They are not copied.
IGNORED = ("feature_extractor", "image_encoder", "safety_checker", "watermark")

PIPELINE_CLASSES: Mapping[Role, tuple[str, ...]] = {
    "base": ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "refiner": ("StableDiffusionXLImg2ImgPipeline",),
}
WRITTEN_CLASS: Mapping[Role, str] = {
    "base": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}
