"""Draws a scene: shaded shapes with a soft shadow on a background with a vertical gradient."""

import math
import random

import numpy as np
from numpy.typing import NDArray

from export.embedded.scenes import PALETTE, Placement, Scene, placements
from export.embedded.shapes import EXTENT, distance

Image = NDArray[np.uint8]
Pixels = NDArray[np.float32]

STYLES = ("flat", "striped", "outlined")
_GRADIENT = 0.12  # the background's brightness changes by up to this much from middle to edge
_SHADOW = 0.25  # darkening in the middle of a shadow
_LIGHT = 155.0  # luma from which a colour gets dark stripes
_SHADOW_SHIFT = (3.0, 4.0)  # pixels of a 128-pixel side


def _background(scene: Scene, slope: float, width: int, height: int) -> Pixels:
    """The empty canvas: floats (height, width, 3) in 0..255."""
    ramp = slope * (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / (height / 2)
    colour = np.array(PALETTE[scene.background], dtype=np.float32)
    # The constant term keeps the gradient visible on black.
    rows = colour * (1 + ramp[:, None]) + 18 * ramp[:, None]
    return np.repeat(rows[:, None, :], width, axis=1)


def _local(
    place: Placement, ys: slice, xs: slice, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Pixels, Pixels]:
    """Pixel centres of a window as coordinates of the shape, in radii."""
    y, x = np.mgrid[ys, xs].astype(np.float32) + np.float32(0.5)
    x, y = x - place.x - shift[0], y - place.y - shift[1]
    c, s = math.cos(place.rotation) / place.radius, math.sin(place.rotation) / place.radius
    return c * x + s * y, c * y - s * x


def _paint(scene: Scene, place: Placement, u: Pixels, v: Pixels, style: str, unit: float) -> Pixels:
    """The shape's own colour per pixel, (h, w, 3): a slight diagonal shade, perhaps stripes."""
    colour = np.array(PALETTE[scene.colour], dtype=np.float32)
    paint: Pixels = colour * (1 - 0.05 * (u + v))[..., None]
    if style != "striped":
        return paint
    # White stripes would be faint on light colours.
    light = float(colour @ np.array([0.30, 0.59, 0.11], dtype=np.float32)) > _LIGHT
    other = 0.3 * colour if light else np.full(3, 250, dtype=np.float32)
    period = max(13 * unit, 0.5 * place.radius)
    wave = np.sin((u + v) * place.radius * 2 * math.pi / (period * math.sqrt(2)))
    mix = np.clip(0.5 + 1.6 * wave, 0, 1)[..., None]
    striped: Pixels = paint * mix + other * (1 - mix)
    return striped


def _edge(
    shape: str, style: str, place: Placement, at: tuple[Pixels, Pixels], unit: float
) -> Pixels:
    """Signed distance in pixels to the filled area: the shape, or a band along its outline."""
    edge = distance(shape, *at) * np.float32(place.radius)
    if style == "outlined":
        edge = np.abs(edge) - np.float32(max(2.5 * unit, 0.12 * place.radius))
    return edge


def _draw(canvas: Pixels, scene: Scene, place: Placement, style: str) -> None:
    """Paint one shape and its shadow into ``canvas``, touching only a window around it."""
    height, width = canvas.shape[:2]
    unit = min(width, height) / 128
    reach = EXTENT * place.radius + 14 * unit
    ys = slice(max(0, int(place.y - reach)), min(height, int(place.y + reach) + 1))
    xs = slice(max(0, int(place.x - reach)), min(width, int(place.x + reach) + 1))
    window = canvas[ys, xs]

    shift = (_SHADOW_SHIFT[0] * unit, _SHADOW_SHIFT[1] * unit)
    far = _edge(scene.shape, style, place, _local(place, ys, xs, shift), unit)
    window *= 1 - _SHADOW / (1 + np.exp(np.clip(far / (2.0 * unit), -30, 30)))[..., None]

    u, v = _local(place, ys, xs)
    edge = _edge(scene.shape, style, place, (u, v), unit)
    cover = np.clip(0.5 - edge, 0, 1)[..., None]  # one pixel of anti-aliasing
    window *= 1 - cover
    window += _paint(scene, place, u, v, style, unit) * cover


def render(
    scene: Scene,
    rng: random.Random,
    *,
    width: int = 128,
    height: int = 128,
    style: str = "flat",
) -> Image:
    """Draw ``scene`` as RGB bytes (height, width, 3); ``rng`` decides gradient and jitter."""
    canvas = _background(scene, rng.uniform(-_GRADIENT, _GRADIENT), width, height)
    for place in placements(scene, rng, width, height):
        _draw(canvas, scene, place, style)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
