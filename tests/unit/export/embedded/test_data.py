"""Scenes, captions, renderer."""

import random
from itertools import pairwise

import numpy as np
import pytest

from export.embedded.data import (
    PALETTE,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    combinations,
    is_held_out,
    placements,
    plain_caption,
    render,
    sample_scene,
    vary_caption,
    words,
)
from export.embedded.shapes import EXTENT, distance

CANVASES = [(128, 128), (192, 128), (128, 192), (256, 256), (160, 224)]


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    seen, unseen = list(combinations(held_out=False)), list(combinations(held_out=True))
    assert len(seen) + len(unseen) == 10 * 6 * 9
    assert 0.07 < len(unseen) / 540 < 0.13
    for place, values in enumerate((PALETTE, SHAPES, PALETTE)):
        assert {combination[place] for combination in seen} == set(values)


def test_held_out_combinations_are_never_sampled() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        scene = sample_scene(rng)
        assert not is_held_out(scene.colour, scene.shape, scene.background)
        assert scene.colour != scene.background
    for _ in range(200):
        scene = sample_scene(rng, held_out=True)
        assert is_held_out(scene.colour, scene.shape, scene.background)


@pytest.mark.parametrize("size", CANVASES)
def test_every_scene_lies_within_the_canvas(size: tuple[int, int]) -> None:
    rng = random.Random(2)
    width, height = size
    for _ in range(1500):
        for place in placements(sample_scene(rng), rng, width, height):
            reach = place.radius * EXTENT
            assert reach <= place.x <= width - reach
            assert reach <= place.y <= height - reach


@pytest.mark.parametrize("size", CANVASES)
def test_neighbours_do_not_touch(size: tuple[int, int]) -> None:
    rng = random.Random(3)
    for _ in range(1500):
        row = placements(sample_scene(rng), rng, *size)
        for left, right in pairwise(row):
            assert right.x - left.x - EXTENT * (left.radius + right.radius) >= 2


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_stay_within_the_extent(shape: str) -> None:
    axis = np.linspace(-2, 2, 401, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = distance(shape, x, y) < 0
    assert np.abs(x[inside]).max() <= EXTENT
    assert np.abs(y[inside]).max() <= EXTENT
    assert inside[200, 200]


def test_a_polygons_distance_is_exact() -> None:
    x, y = np.array([0, 1.8, 1.8], dtype=np.float32), np.array([0, 0, 1.8], dtype=np.float32)
    assert distance("square", x, y) == pytest.approx([-0.8, 1.0, np.sqrt(2)], abs=1e-5)


def test_rendering_is_reproducible_and_has_the_right_size() -> None:
    scene = Scene("red", "blue", "star", 2, "large")
    one, two = (render(scene, random.Random(4), width=192, height=128) for _ in range(2))
    assert one.shape == (128, 192, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)


def test_styles_differ_in_the_middle() -> None:
    scene = Scene("red", "blue", "circle", 1, "large")
    flat, striped, outlined = (
        render(scene, random.Random(5), style=s)[54:74, 54:74].astype(float)
        for s in ("flat", "striped", "outlined")
    )
    assert flat.std((0, 1)).mean() < 12 < striped.std((0, 1)).mean()
    assert np.abs(outlined.mean((0, 1)) - PALETTE["blue"]).max() < 30


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene("red", "blue", "circle"), "a red circle on a blue background"),
        (Scene("orange", "cyan", "star", 1, "small"), "a small orange star on a cyan background"),
        (
            Scene("pink", "orange", "heart", 2, "large"),
            "two large pink hearts on an orange background",
        ),
        (
            Scene("orange", "red", "square", 1, "medium", "top"),
            "an orange square on the top on a red background",
        ),
    ],
)
def test_plain_captions(scene: Scene, caption: str) -> None:
    assert plain_caption(scene) == caption


def test_varied_captions_name_what_they_say() -> None:
    rng, silent = random.Random(6), 0
    for _ in range(500):
        scene = sample_scene(rng)
        caption = vary_caption(scene, rng)
        spoken = caption.text.replace(",", "").split()
        assert scene.shape in spoken or scene.shape + "s" in spoken
        for name in ("colour", "background"):
            value = getattr(scene, name)
            assert caption.said[name] in (value, None)
            assert (value in spoken) == (caption.said[name] is not None)
            silent += caption.said[name] is None
        if scene.position != "center":
            assert scene.position in spoken
    assert silent > 0


def test_the_vocabulary_covers_the_attributes() -> None:
    known = set(words())
    assert {*PALETTE, *SHAPES, *SIZES, *POSITIONS, "two", "three", "stars", ","} <= known
