"""Draws the sample sheet of the documentation: ``python -m export.embedded.samples``.

Nothing is picked by hand: the prompts are fixed, and every picture's seed is its place in the row.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from export.embedded import WEIGHTS
from export.embedded.captions import plain_caption
from export.embedded.generate import draw_scenes, load_base, load_refiner
from export.embedded.scenes import Scene

_OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "samples.png"
_SIDE, _GAP, _TEXT, _HEAD = 128, 8, 30, 22  # pixels

BASE = (
    Scene("red", "blue", "circle"),
    Scene("yellow", "purple", "star", size="large"),
    Scene("white", "green", "square"),
    Scene("pink", "black", "heart", size="large"),
    Scene("cyan", "orange", "diamond", position="left"),
    Scene("black", "yellow", "triangle", position="bottom"),
    Scene("blue", "white", "heart", count=2, size="large"),
    Scene("green", "pink", "circle", count=3, size="large"),
)
STYLED = (
    Scene("red", "white", "circle", size="large"),
    Scene("blue", "yellow", "square", size="large"),
    Scene("purple", "cyan", "heart", size="large"),
    Scene("orange", "black", "star", size="large"),
)

Row = tuple[str, list[tuple[str, Image.Image]]]


def _captioned(
    scenes: Sequence[Scene], pictures: Sequence[Image.Image]
) -> list[tuple[str, Image.Image]]:
    return list(zip(map(plain_caption, scenes), pictures, strict=True))


def draw_rows(weights: Path) -> list[Row]:
    """The pictures with their captions, row by row."""
    base, refiner = load_base(weights), load_refiner(weights)
    rows = [
        ("base", _captioned(BASE, draw_scenes(base, BASE, seed=0))),
        ("base and refiner", _captioned(BASE, draw_scenes(base, BASE, seed=0, refiner=refiner))),
    ]
    styled: list[tuple[str, Image.Image]] = []
    for style in ("striped", "outlined"):
        base.load_lora_weights(weights / "loras", weight_name=f"{style}.safetensors")
        styled += _captioned(STYLED, draw_scenes(base, STYLED, seed=0))
        base.unload_lora_weights()
    rows.append(("LoRA: striped (left), outlined (right)", styled))
    return rows


def compose(rows: Sequence[Row]) -> Image.Image:
    """One sheet with a heading over every row and a caption under every picture."""
    columns = max(len(pictures) for _, pictures in rows)
    height = _HEAD + _SIDE + _TEXT + _GAP
    sheet = Image.new(
        "RGB", (columns * (_SIDE + _GAP) + _GAP, len(rows) * height + _GAP), (255, 255, 255)
    )
    pen = ImageDraw.Draw(sheet)
    heading, small = ImageFont.load_default(13), ImageFont.load_default(9)
    for number, (title, pictures) in enumerate(rows):
        top = number * height + _GAP
        pen.text((_GAP, top), title, (40, 40, 40), font=heading)
        for place, (caption, picture) in enumerate(pictures):
            left = _GAP + place * (_SIDE + _GAP)
            sheet.paste(picture, (left, top + _HEAD))
            lines = "\n".join(textwrap.wrap(caption, 28))
            pen.text((left, top + _HEAD + _SIDE + 2), lines, (70, 70, 70), font=small)
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m export.embedded.samples", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    compose(draw_rows(options.weights)).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
