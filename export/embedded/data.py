"""Scenes, their captions and their pictures, re-exported from one module."""

from export.embedded.captions import Caption, junk, plain_caption, vary_caption, words
from export.embedded.render import STYLES, render
from export.embedded.scenes import (
    COLOURS,
    COUNTS,
    PALETTE,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    combinations,
    is_held_out,
    placements,
    sample_scene,
)

__all__ = [
    "COLOURS",
    "COUNTS",
    "PALETTE",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "Caption",
    "Scene",
    "combinations",
    "is_held_out",
    "junk",
    "placements",
    "plain_caption",
    "render",
    "sample_scene",
    "vary_caption",
    "words",
]
