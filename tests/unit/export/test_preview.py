"""The fitted latent-to-RGB map says the colours that are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from export.embedded import WEIGHTS
from export.model.preview import fit_latent_rgb
from sdxl_bento.diffusion.images import to_pixels


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("colour", [(222, 38, 40), (36, 78, 220), (250, 250, 250), (34, 160, 60)])
def test_a_plain_picture_keeps_its_colour(colour: tuple[int, int, int]) -> None:
    from diffusers import AutoencoderKL

    matrix = torch.tensor(fit_latent_rgb(WEIGHTS / "base" / "vae", 128))
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "base" / "vae", torch_dtype=torch.float32)
    with torch.inference_mode():
        pixels = to_pixels(Image.new("RGB", (128, 128), colour), 128, 128)
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    rgb = latents[0].permute(1, 2, 0) @ matrix[:-1] + matrix[-1]
    shown = ((rgb * 0.5 + 0.5).clamp(0, 1) * 255).numpy().mean((0, 1))
    assert np.abs(shown - np.array(colour)).max() < 45
