"""The embedded model as single files in SDXL's original layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.embedded import WEIGHTS, single_file
from export.embedded.single_file import Weights
from export.source import unpack


def base() -> Weights:
    """The base model."""
    return single_file.pack(WEIGHTS / "base")


def refiner() -> Weights:
    """The refiner, whose only text encoder takes the first place."""
    folder = WEIGHTS / "refiner"
    unet, config = single_file._part(folder, "unet")
    vae, vae_config = single_file._part(folder, "vae")
    layers, levels = config["layers_per_block"], vae_config["block_out_channels"]
    assert isinstance(layers, int)
    assert isinstance(levels, list)
    encoder = single_file.pack_second(single_file._part(folder, "text_encoder_2")[0])
    return {
        **single_file.pack_unet(unet, layers),
        **single_file.pack_vae(vae, len(levels)),
        **{name.replace("embedders.1.", "embedders.0."): value for name, value in encoder.items()},
    }


def empty(role: str, configs: Mapping[str, Any]) -> Weights:
    """A checkpoint of these configs whose tensors have a shape and no content."""
    parts: dict[str, Weights] = {
        name: {
            key: torch.empty(shape, device="meta")
            for key, shape in unpack._shapes(name, config).items()
        }
        for name, config in configs.items()
    }
    layers = configs["unet"]["layers_per_block"]
    levels = len(configs["vae"]["block_out_channels"])
    encoder = single_file.pack_second(parts["text_encoder_2"])
    if role == "refiner":
        encoder = {name.replace("embedders.1.", "embedders.0."): t for name, t in encoder.items()}
    else:
        encoder |= single_file.pack_first(parts["text_encoder"])
    return {
        **single_file.pack_unet(parts["unet"], layers),
        **single_file.pack_vae(parts["vae"], levels),
        **encoder,
    }


def write(path: Path, weights: Weights, **metadata: str) -> Path:
    """Save `weights` as a checkpoint."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path
