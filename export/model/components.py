"""Load one UNet or VAE of a written model, to compile it or to compare with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_shapes(folder: Path) -> Any:
    """The component on torch's `meta` device: its config, layers and shapes, but no weights."""
    cls = _class(folder)
    with torch.device("meta"):
        module = cls.from_config(cls.load_config(folder, local_files_only=True))
    return module.eval().requires_grad_(False)


def load_component(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The component with its weights in `dtype`, on `device`."""
    module = _class(folder).from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return module.to(device).eval().requires_grad_(False)


def _class(folder: Path) -> Any:
    """diffusers' class of the UNet or VAE in `folder`, which is named for its component."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return AutoencoderKL if folder.name == "vae" else UNet2DConditionModel
