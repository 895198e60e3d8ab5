"""Pools of drawn pictures as byte tensors, in the sizes that training uses."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from export.embedded.render import render
from export.embedded.scenes import Scene, sample_scene

Size = tuple[int, int]
"""Width and height in pixels."""

SQUARE: Size = (128, 128)
WIDE: Size = (192, 128)
TALL: Size = (128, 192)
BIG: Size = (256, 256)


def to_tensor(scene: Scene, rng: random.Random, size: Size = SQUARE, style: str = "flat") -> Tensor:
    """One picture as bytes (3, height, width)."""
    picture = render(scene, rng, width=size[0], height=size[1], style=style)
    return torch.from_numpy(picture).permute(2, 0, 1)


def normalise(pictures: Tensor) -> Tensor:
    """Bytes 0..255 to floats -1..1."""
    return pictures.float() / 127.5 - 1


def mixed_pool(count: int, size: Size, seed: int, weights: Sequence[float]) -> Tensor:
    """``count`` random pictures (count, 3, height, width); ``weights`` of the three styles."""
    rng = random.Random(f"{seed}/{size}")
    styles = rng.choices(("flat", "striped", "outlined"), weights, k=count)
    return torch.stack([to_tensor(sample_scene(rng), rng, size, style) for style in styles])
