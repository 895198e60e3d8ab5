"""A written model, base and refiner, whose networks are so small that it compiles in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from sdxl_bento.manifest import PipelineInfo, Role
from tests.support.small_unet import CELLS, small_unet

SCALE = 2  # pixels of a latent cell's side


@dataclass(frozen=True)
class SmallModel:
    """A model in `folder`, without text encoders and schedulers."""

    folder: Path
    pipelines: dict[Role, PipelineInfo]


def write_small_model(folder: Path) -> SmallModel:
    """Write both pipelines into `folder`; the refiner's weights are others than the base's."""
    return SmallModel(
        folder, {"base": _write(folder, "base", 0), "refiner": _write(folder, "refiner", 1)}
    )


def small_vae(seed: int) -> Any:
    """Two levels of eight channels, so two pixels to a latent cell."""
    torch.manual_seed(seed)
    return (
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=CELLS * SCALE,
        )
        .eval()
        .requires_grad_(False)
    )


def _write(folder: Path, role: Role, seed: int) -> PipelineInfo:
    unet = small_unet()
    torch.manual_seed(seed)
    for parameter in unet.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02 * seed)
    unet.save_pretrained(folder / role / "unet")
    small_vae(seed).save_pretrained(folder / role / "vae")
    side = 4 * CELLS * SCALE  # five quarters of it are whole on every level too
    return PipelineInfo(
        path=role,
        components={},
        prediction_type="epsilon",
        width=side,
        height=side,
        latent_channels=4,
        vae_scale_factor=SCALE,
        requires_aesthetics_score=role == "refiner",
        force_zeros_for_empty_prompt=True,
    )
