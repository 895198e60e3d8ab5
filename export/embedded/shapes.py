"""Signed distances to the six outlines, in units of the shape's radius; y grows downwards."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Point = tuple[float, float]

EXTENT = 1.12
"""No outline reaches further than this many radii from its centre along either axis."""


def _regular(radii: Sequence[float], shift: float = 0.0) -> list[Point]:
    """Corners at equal angles, the first at the top, with the given distances to the centre."""
    step = 2 * math.pi / len(radii)
    return [(r * math.sin(i * step), shift - r * math.cos(i * step)) for i, r in enumerate(radii)]


CORNERS: dict[str, list[Point]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "diamond": [(0.0, -1.1), (1.1, 0.0), (0.0, 1.1), (-1.1, 0.0)],
    "triangle": _regular([1.1] * 3, shift=0.2),
    "star": _regular([1.1, 0.52] * 5),
}


def _polygon(corners: list[Point], x: Array, y: Array) -> Array:
    """Exact signed distance to a closed polygon: negative inside."""
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey != 0:  # even-odd rule: count the edges that a ray to the right crosses
            inside ^= ((y < ay) != (y < by)) & (x < ax + ex * (y - ay) / ey)
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _circle(x: Array, y: Array, radius: float) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def _heart(x: Array, y: Array) -> Array:
    """A square on its corner with half a disc on each of its two upper sides."""
    half = 0.85  # half of the square's diagonal
    y = y - np.float32(0.09)  # centres the whole figure
    body = _polygon([(0, -half), (half, 0), (0, half), (-half, 0)], x, y)
    lobes = _circle(np.abs(x) - np.float32(half / 2), y + np.float32(half / 2), half / math.sqrt(2))
    return np.minimum(body, lobes)


def distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance at the points ``x``, ``y`` (any shape of array), in radii; inside < 0."""
    if shape == "circle":
        return _circle(x, y, 0.95)
    if shape == "heart":
        return _heart(x, y)
    return _polygon(CORNERS[shape], x, y)
