"""The linear map from latents to RGB with which previews are drawn, fitted to a VAE.

Pictures of plain rectangles are encoded. A matrix [4, 3] and a bias are fitted by least squares, so
that each latent cell gets the mean colour of its pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LatentRGB = tuple[tuple[float, float, float], ...]

PICTURES = 32
RECTANGLES = 4
SEED = 0


def fit_latent_rgb(vae_folder: Path, side: int) -> LatentRGB:
    """[channels + 1, 3]: colours in -1 to 1 from the UNet's latents, the bias last.

    Args:
        vae_folder: the VAE in diffusers' layout.
        side: width and height of the pictures to fit on, in pixels.
    """
    import torch
    from diffusers import AutoencoderKL

    load: Any = AutoencoderKL.from_pretrained
    vae = load(vae_folder, torch_dtype=torch.float32).eval()
    pixels = _rectangles(side)
    with torch.inference_mode():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.chunk(4)])
    latents = latents * vae.config.scaling_factor
    cell = side // latents.shape[-1]
    colours = torch.nn.functional.avg_pool2d(pixels, cell)
    x = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    x, y = (t.permute(0, 2, 3, 1).flatten(0, 2).double() for t in (x, colours))
    matrix = torch.linalg.lstsq(x, y).solution
    return tuple((row[0], row[1], row[2]) for row in matrix.float().tolist())


def _rectangles(side: int) -> Tensor:
    """[PICTURES, 3, side, side] in -1 to 1."""
    import torch

    generator = torch.Generator().manual_seed(SEED)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    pictures = torch.rand((PICTURES, 3, 1, 1), generator=generator) * 2 - 1
    pictures = pictures.repeat(1, 1, side, side)
    for picture in pictures:
        for _ in range(RECTANGLES):
            left, top = draw(0, side - side // 4), draw(0, side - side // 4)
            right, bottom = left + draw(side // 4, side), top + draw(side // 4, side)
            colour = torch.rand((3, 1, 1), generator=generator) * 2 - 1
            picture[:, top:bottom, left:right] = colour
    return pictures
