"""Tells from pixels whether a large centred shape is striped or outlined."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.embedded.scenes import PALETTE, Scene

_HOLLOW_HALF = 6  # half the side of the patch in the middle, in pixels of a 128-pixel canvas
_STRIPE_HALF = 10
_STRIPE_SPREAD = 20.0  # standard deviation of RGB values; drawn flat shapes stay below 5


def _patch(image: Image.Image, half: int) -> NDArray[np.float64]:
    """The middle of the picture as values (n, n, 3) in 0..255."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    height, width = pixels.shape[:2]
    half = half * min(height, width) // 128
    y, x = height // 2, width // 2
    return pixels[y - half : y + half, x - half : x + half]


def _own_share(patch: NDArray[np.float64], scene: Scene) -> float:
    """Share of the pixels that are nearer to the shape's colour than to the background's."""
    to_colour = np.abs(patch - PALETTE[scene.colour]).sum(-1)
    return float((to_colour < np.abs(patch - PALETTE[scene.background]).sum(-1)).mean())


def is_outlined(image: Image.Image, scene: Scene) -> bool:
    """The middle of the shape has the background's colour rather than its own."""
    return _own_share(_patch(image, _HOLLOW_HALF), scene) < 0.2


def stripe_spread(image: Image.Image) -> float:
    """Standard deviation of the colour within the middle of the shape."""
    patch = _patch(image, _STRIPE_HALF)
    return float(np.sqrt(patch.reshape(-1, 3).var(axis=0).mean()))


def is_striped(image: Image.Image, scene: Scene) -> bool:
    """The middle of the shape alternates, and much of it still has the shape's colour."""
    own = _own_share(_patch(image, _STRIPE_HALF), scene)
    return own > 0.3 and stripe_spread(image) > _STRIPE_SPREAD


CHECKS = {"striped": is_striped, "outlined": is_outlined}
