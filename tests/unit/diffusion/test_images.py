"""From pictures to pixels for the VAE."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from sdxl_bento.diffusion.images import from_pixels, to_pixels


def extent(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is drawn."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


@pytest.mark.parametrize("source", [(128, 128), (129, 127), (300, 150), (90, 200), (64, 64)])
@pytest.mark.parametrize("size", [(128, 128), (128, 64), (64, 192)])
def test_a_circle_stays_a_circle(source: tuple[int, int], size: tuple[int, int]) -> None:
    """And stays in the middle, and is scaled as much as the picture has to be to be filled."""
    image = Image.new("RGB", source, "white")
    radius = 9
    x, y = source[0] / 2, source[1] / 2
    circle = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(circle, fill="black")
    pixels = to_pixels(image, *size)
    assert pixels.shape == (1, 3, size[1], size[0])
    left, top, width, height = extent(pixels[0, 0] < 0)
    scale = max(size[0] / source[0], size[1] / source[1])
    assert abs(width - height) <= 2
    assert abs(width - 2 * radius * scale) <= 3
    assert abs(left + width / 2 - size[0] / 2) <= 1.5
    assert abs(top + height / 2 - size[1] / 2) <= 1.5


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = Image.effect_noise((64, 72), 90).convert("RGB")
    back = from_pixels(to_pixels(image, 64, 72))
    assert Image.fromarray(back[0].numpy()).tobytes() == image.tobytes()
