"""Load one UNet or VAE of a written model, to compile it or to compare with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdxl_bento.manifest import WeightDtype

DTYPES: Mapping[WeightDtype, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def component_of(part: str) -> str:
    """The folder of the weights that a part is made from: "base/unet_slots" -> "unet"."""
    return "vae" if part.endswith("vae_decoder") else "unet"


def load_shapes(folder: Path) -> Any:
    """The same on torch's `meta` device: config, layers and shapes; no weight is read."""
    cls = _class(folder)
    with torch.device("meta"):
        module = cls.from_config(cls.load_config(folder, local_files_only=True))
    return module.eval().requires_grad_(False)


def load_component(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The UNet or VAE in `folder`, by its own class."""
    module = _class(folder).from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return module.to(device).eval().requires_grad_(False)


def _class(folder: Path) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return AutoencoderKL if folder.name == "vae" else UNet2DConditionModel
