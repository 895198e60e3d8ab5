"""A cheap look at unfinished latents: a linear map from four channels to RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from sdxl_bento.diffusion.transfer import constant

if TYPE_CHECKING:
    from sdxl_bento.diffusion.model import Model

# [4 channels + bias, RGB], pixels in -1 to 1 from latents of SDXL's own VAE: the approximation
# that the community published for the family. A model may bring its own in its manifest.
SDXL_LATENT_RGB = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)


def to_rgb(denoised: torch.Tensor, model: Model) -> torch.Tensor:
    """[1, 4, h, w] denoised estimate -> [h, w, 3] uint8, one pixel for each latent cell."""
    matrix = constant(model.manifest.latent_rgb or SDXL_LATENT_RGB, denoised.device)
    rgb = denoised[0].permute(1, 2, 0) @ matrix[:-1] + matrix[-1]
    return ((rgb * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """[H, W, 3] uint8 on the CPU -> picture."""
    return Image.fromarray(pixels.numpy())
