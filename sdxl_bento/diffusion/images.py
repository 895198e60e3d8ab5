"""Between PIL pictures and the VAE's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pixels(image: Image, width: int, height: int) -> torch.Tensor:
    """[1, 3, height, width] float32 in -1 to 1.

    If the size differs, the middle of the picture is taken, as much as has the right aspect ratio,
    and is scaled by Lanczos. So nothing is squashed: a circle stays a circle.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    image = image.convert("RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1)[None] * 2.0 - 1.0


def from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in -1 to 1 -> [B, H, W, 3] uint8, rounded as diffusers does."""
    unit = (pixels.float() * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
