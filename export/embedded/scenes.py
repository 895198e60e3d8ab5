"""Scenes: their vocabulary, random sampling, and geometry.

Geometry is relative to the canvas. Radii scale with the shorter side (``unit`` is that side divided
by 128) and offsets from the centre scale with each side on its own, so that one scene fits every
canvas from 128x128 to 256x256.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 40),
    "green": (34, 160, 60),
    "blue": (36, 78, 220),
    "yellow": (250, 222, 48),
    "orange": (245, 124, 20),
    "purple": (130, 48, 176),
    "cyan": (48, 204, 220),
    "pink": (250, 140, 196),
    "white": (250, 250, 250),
    "black": (18, 18, 22),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart")
SIZES = ("small", "medium", "large")
COUNTS = (1, 2, 3)
# Direction of each position in the picture; x grows to the right and y downwards.
POSITIONS: dict[str, tuple[int, int]] = {
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}

# Radii and offsets in pixels of a 128-pixel side. Together with the jitters below they keep every
# outline within the canvas and neighbouring outlines at least 3 pixels apart.
_RADII: dict[int, tuple[float, float, float]] = {
    1: (15.0, 25.0, 37.0),
    2: (12.0, 18.0, 24.0),
    3: (12.0, 14.0, 16.0),
}
_OFFSETS = (38.0, 29.0, 16.0)
_SPACING = {2: 64.0, 3: 42.0}
_RADIUS_JITTER = {1: 0.05, 2: 0.04, 3: 0.03}
_CENTRE_JITTER = {1: (2.5, 2.5), 2: (1.0, 3.0), 3: (0.7, 3.0)}
_ROTATION_JITTER = 0.04  # radians


@dataclass(frozen=True)
class Scene:
    """One picture in words: ``count`` equal shapes of one colour on a plain background."""

    colour: str
    background: str
    shape: str
    count: int = 1
    size: str = "medium"
    position: str = "center"


@dataclass(frozen=True)
class Placement:
    """The placement of one shape: centre and radius in pixels, rotation in radians."""

    x: float
    y: float
    radius: float
    rotation: float


def is_held_out(colour: str, shape: str, background: str) -> bool:
    """Tell whether training never sees this combination (about a tenth of all 540).

    A checksum of the words decides, so the choice needs no list and no random state.
    """
    return zlib.crc32(f"{colour} {shape} on {background}".encode()) % 10 == 3


def combinations(held_out: bool) -> Iterator[tuple[str, str, str]]:
    """Yield every (colour, shape, background) that is held out, or every one that is not."""
    for colour in COLOURS:
        for shape in SHAPES:
            for background in COLOURS:
                if colour != background and is_held_out(colour, shape, background) == held_out:
                    yield colour, shape, background


_SEEN = tuple(combinations(held_out=False))
_UNSEEN = tuple(combinations(held_out=True))


def sample_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Sample a random scene, from the seen combinations or from the held-out ones."""
    colour, shape, background = rng.choice(_UNSEEN if held_out else _SEEN)
    count = rng.choices(COUNTS, (70, 18, 12))[0]
    size = rng.choices(SIZES, (25, 50, 25))[0]
    # A row of shapes fills the width, so only a single shape can move off the centre.
    spots = tuple(POSITIONS)
    position = rng.choices(spots, (4, 1, 1, 1, 1))[0] if count == 1 else "center"
    return Scene(colour, background, shape, count, size, position)


def placements(
    scene: Scene, rng: random.Random, width: int = 128, height: int = 128
) -> list[Placement]:
    """Lay the scene out on a canvas of ``width`` x ``height`` pixels, left to right."""
    unit = min(width, height) / 128
    size = SIZES.index(scene.size)
    jitter_x, jitter_y = _CENTRE_JITTER[scene.count]
    if scene.count == 1:
        direction = POSITIONS[scene.position]
        centres = [(direction[0] * _OFFSETS[size], direction[1] * _OFFSETS[size])]
    else:
        middle = (scene.count - 1) / 2
        centres = [((i - middle) * _SPACING[scene.count], 0.0) for i in range(scene.count)]
    result = []
    for x, y in centres:
        jitter = _RADIUS_JITTER[scene.count]
        result.append(
            Placement(
                x=width * (0.5 + x / 128) + unit * rng.uniform(-jitter_x, jitter_x),
                y=height * (0.5 + y / 128) + unit * rng.uniform(-jitter_y, jitter_y),
                radius=unit * _RADII[scene.count][size] * (1 + rng.uniform(-jitter, jitter)),
                rotation=rng.uniform(-_ROTATION_JITTER, _ROTATION_JITTER),
            )
        )
    return result
