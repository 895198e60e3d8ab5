"""The choice of the dtype that a VAE's decoder computes in.

SDXL's own decoder overflows in fp16; published variants with mended weights do not. Which one a
model has is measured, since nothing in its config says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from export.check.parity import LEAST_PSNR_DB
from export.likeness import psnr_db
from export.model.components import load_component
from sdxl_bento.dtypes import torch_dtype
from sdxl_bento.manifest import WeightDtype


def pick_vae_dtype(vae_folder: Path, dtype: WeightDtype, device: torch.device) -> WeightDtype:
    """The narrowest of `dtype`, bf16 and fp32 in which the decoder keeps within its threshold.

    The latents tried are those of plain and of noisy pictures, as the encoder makes them, and
    random ones.

    Args:
        vae_folder: of the written model.
        dtype: the one that was asked for.
        device: where the decoder will run.
    """
    if dtype == "fp32":
        return dtype
    original = load_component(vae_folder, torch.float32, device)
    latents = _trial_latents(original, device)
    with torch.inference_mode():
        reference = original.decode(latents).sample
        for candidate in dict.fromkeys((dtype, "bf16")):
            vae = load_component(vae_folder, torch_dtype(candidate), device)
            output = vae.decode(latents.to(vae.dtype)).sample.float()
            if output.isfinite().all() and psnr_db(output, reference) >= LEAST_PSNR_DB[candidate]:
                return candidate
    return "fp32"


def _trial_latents(vae: Any, device: torch.device) -> torch.Tensor:
    """[5, 4, 32, 32], unscaled."""
    side = 32 * 2 ** (len(vae.config.block_out_channels) - 1)
    random = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, side)
    pictures = torch.stack(
        [
            torch.ones(3, side, side),
            -torch.ones(3, side, side),
            ramp.repeat(3, side, 1),
            torch.rand(3, side, side, generator=random) * 2 - 1,
        ]
    )
    with torch.inference_mode():
        encoded = vae.encode(pictures.to(device)).latent_dist.mode()
    noise = torch.randn(encoded[:1].shape, generator=random) / vae.config.scaling_factor
    return torch.cat([encoded, noise.to(device)])
