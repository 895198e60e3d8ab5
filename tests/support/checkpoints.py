"""The embedded model as single files in SDXL's original layout."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from export.embedded import WEIGHTS, single_file
from export.embedded.single_file import Weights


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


def write(path: Path, weights: Weights, **metadata: str) -> Path:
    """Save `weights` as a checkpoint."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path
