"""The pixel rules against drawn originals."""

import random

import numpy as np
import pytest
from PIL import Image

from export.embedded.checker import analyse
from export.embedded.crispness import corners, edge_width
from export.embedded.render import render
from export.embedded.scenes import Scene, sample_scene
from export.embedded.styles import is_outlined, is_striped


def draw(scene: Scene, seed: int = 0, size: tuple[int, int] = (128, 128), style: str = "flat"):
    pixels = render(scene, random.Random(seed), width=size[0], height=size[1], style=style)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "count"), [((128, 128), 150), ((192, 128), 50), ((256, 256), 40)])
def test_originals_are_read_rightly(size: tuple[int, int], count: int) -> None:
    rng = random.Random(7)
    right = 0
    for number in range(count):
        scene = sample_scene(rng)
        found = analyse(draw(scene, number, size))
        right += all(found.matches(scene).values())
        assert found.iou > 0.9
    assert right / count >= 0.98


def test_an_empty_picture_has_a_background_only() -> None:
    found = analyse(Image.new("RGB", (128, 128), (222, 38, 40)))
    assert (found.background, found.colour, found.shape, found.count) == ("red", None, None, 0)
    assert edge_width(Image.new("RGB", (64, 64))) is None


def test_the_wrong_scene_does_not_match() -> None:
    found = analyse(draw(Scene("red", "blue", "circle", 1, "large")))
    wrong = found.matches(Scene("red", "green", "square", 2, "large"))
    assert wrong == {
        "background": False,
        "colour": True,
        "shape": False,
        "count": False,
        "position": True,
    }


def test_blur_widens_edges() -> None:
    scene = Scene("red", "blue", "square", 1, "large")
    sharp = draw(scene)
    soft = sharp.resize((64, 64), Image.Resampling.BILINEAR).resize((128, 128))
    narrow, wide = edge_width(sharp), edge_width(soft)
    assert narrow is not None
    assert wide is not None
    assert narrow < 1.6 < wide


@pytest.mark.parametrize("shape", ["square", "diamond"])
def test_true_corners_are_straight(shape: str) -> None:
    found = corners(draw(Scene("white", "black", shape, 1, "large")), shape)
    assert found is not None
    assert found.iou > 0.94
    assert abs(found.reach) < 5
    assert found.side < 3


def test_horns_and_rounding_show_in_the_corners() -> None:
    pixels = np.full((128, 128, 3), 250, dtype=np.uint8)
    pixels[34:94, 34:94] = (18, 18, 22)
    horned = pixels.copy()
    for y, x in ((30, 30), (30, 92), (92, 30), (92, 92)):
        horned[y : y + 6, x : x + 6] = (18, 18, 22)
    rounded = pixels.copy()
    for y, x in ((34, 34), (34, 88), (88, 34), (88, 88)):
        rounded[y : y + 6, x : x + 6] = 250
    high, low = (corners(Image.fromarray(p), "square") for p in (horned, rounded))
    assert high is not None
    assert low is not None
    assert high.reach > 5
    assert low.reach < -5


def test_styles_are_told_apart() -> None:
    rng = random.Random(8)
    for number in range(30):
        scene = sample_scene(rng)
        scene = Scene(scene.colour, scene.background, scene.shape, 1, "large")
        shown = {s: draw(scene, number, style=s) for s in ("flat", "striped", "outlined")}
        assert [is_striped(p, scene) for p in shown.values()] == [False, True, False]
        assert [is_outlined(p, scene) for p in shown.values()] == [False, False, True]
