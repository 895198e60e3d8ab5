"""Measures of clean outlines: the width of edges, and the accuracy of corners."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, optimize

from export.embedded.checker import Mask, Regions, moments, split
from export.embedded.shapes import CORNERS, distance

Floats = NDArray[np.float64]

_LOW, _HIGH = 0.15, 0.85  # part of the way from background to shape that counts as edge
_CITY_BLOCK = 0.785  # pi / 4: mean ratio of a line's length to its pixel border


@dataclass(frozen=True)
class Corners:
    """The outline of a square or diamond compared with its best template.

    Lengths are in per cent of the template's radius.

    ``reach`` is the mean signed distance by which the outline passes the template's corners:
    positive for horns, negative for rounding. ``side`` is the mean absolute distance between
    outline and template along the sides.
    """

    iou: float
    reach: float
    side: float


def coverage(regions: Regions) -> Floats:
    """The position of each pixel between background (0) and shape (1), (height, width)."""
    axis = regions.colour - regions.rows
    share = ((regions.pixels - regions.rows) * axis).sum(-1)
    return np.asarray(share / np.maximum((axis * axis).sum(-1), 1.0))


def edge_width(image: Image.Image) -> float | None:
    """Mean width in pixels of the transition from background to shape; ``None`` without shape."""
    regions = split(image)
    if regions is None:
        return None
    share = coverage(regions)
    near = ndimage.binary_dilation(np.any(regions.parts, axis=0), iterations=5)
    inside = (share > 0.5) & near
    border = (inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum()
    edge = (share > _LOW) & (share < _HIGH) & near
    return float(edge.sum() / max(1.0, border * _CITY_BLOCK))


def _fit(shape: str, mask: Mask) -> tuple[float, float, float, float, float]:
    """Centre x and y, radius, rotation of the template that overlaps best, and that overlap."""
    ys, xs = np.nonzero(mask)
    margin = max(int(np.ptp(ys)), int(np.ptp(xs))) // 3 + 4
    top, left = max(0, ys.min() - margin), max(0, xs.min() - margin)
    near = mask[top : ys.max() + margin, left : xs.max() + margin].astype(np.float32)
    area, low = moments(shape)
    y, x = np.indices(near.shape, dtype=np.float32) + np.float32(0.5)

    def miss(values: Floats) -> float:
        cx, cy, radius, turn = (float(v) for v in values)
        c, s = math.cos(turn) / radius, math.sin(turn) / radius
        u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
        drawn = np.clip(0.5 - distance(shape, u, v) * radius, 0, 1)
        both = np.minimum(drawn, near).sum()
        return 1 - float(both / np.maximum(drawn, near).sum())

    radius = math.sqrt(mask.sum() / area)
    start = [xs.mean() + 0.5 - left, ys.mean() + 0.5 - top - low * radius, radius, 0.0]
    steps = np.array(start) + np.vstack([np.zeros(4), np.diag([1.0, 1.0, 0.05 * radius, 0.05])])
    fitted = optimize.minimize(
        miss,
        start,
        method="Nelder-Mead",
        options={"initial_simplex": steps, "maxfev": 120, "xatol": 0.01, "fatol": 1e-4},
    )
    cx, cy, radius, turn = (float(v) for v in fitted.x)
    return cx + left, cy + top, radius, turn, 1 - float(fitted.fun)


def _crossing(share: Floats, start: tuple[float, float], angle: float, longest: float) -> float:
    """Distance from ``start`` along ``angle`` to the last pixel that is more shape than not."""
    along = np.arange(0, longest, 0.1)
    x, y = start[0] + along * math.cos(angle), start[1] + along * math.sin(angle)
    values = ndimage.map_coordinates(share, [y - 0.5, x - 0.5], order=1, mode="nearest")
    outside = np.nonzero(values < 0.5)[0]
    return float(along[outside[0]]) if len(outside) else longest


def corners(image: Image.Image, shape: str) -> Corners | None:
    """Measure the largest shape of a picture that should show a square or a diamond."""
    regions = split(image)
    if regions is None:
        return None
    mask = regions.parts[0]
    share = np.where(ndimage.binary_dilation(mask, iterations=4), coverage(regions), 0.0)
    cx, cy, radius, turn, iou = _fit(shape, mask)
    tips = [math.hypot(x, y) * radius for x, y in CORNERS[shape]]
    angles = [math.atan2(y, x) + turn for x, y in CORNERS[shape]]
    reach = [
        _crossing(share, (cx, cy), angle, 1.5 * tip) - tip
        for angle, tip in zip(angles, tips, strict=True)
    ]
    # Along a side between two corners at distance tip, the outline lies at tip cos 45 / cos a.
    side = []
    for angle, tip in zip(angles, tips, strict=True):
        for degrees in (-25, -10, 0, 10, 25):
            turned = math.radians(degrees)
            true = tip * math.cos(math.pi / 4) / math.cos(turned)
            outline = _crossing(share, (cx, cy), angle + math.pi / 4 + turned, 1.5 * tip)
            side.append(abs(outline - true))
    return Corners(iou, 100 * float(np.mean(reach)) / radius, 100 * float(np.mean(side)) / radius)
