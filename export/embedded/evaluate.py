"""Measures the shipped weights: ``python -m export.embedded.evaluate [--quick] [--json PATH]``.

Every figure comes from rules on pixels (``checker``, ``crispness``, ``styles``) at 25 steps,
guidance 5, Euler, single precision.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from export.embedded import WEIGHTS
from export.embedded.checker import analyse
from export.embedded.crispness import corners, edge_width
from export.embedded.generate import draw_scenes, load_base, load_refiner
from export.embedded.images import BIG, SQUARE, WIDE, Size
from export.embedded.render import render
from export.embedded.scenes import SHAPES, Scene, sample_scene
from export.embedded.styles import CHECKS

Figures = dict[str, float]


@dataclass(frozen=True)
class Suite:
    """A set of prompts."""

    name: str
    count: int
    size: Size = SQUARE
    held_out: bool = False


SUITES = (
    Suite("seen", 300),
    Suite("unseen", 60, held_out=True),
    Suite("192x128", 48, WIDE),
    Suite("256x256", 32, BIG),
)


def suite_scenes(suite: Suite, count: int) -> list[Scene]:
    """The first ``count`` scenes of a suite."""
    rng = random.Random(f"evaluate/{suite.name}")
    return [sample_scene(rng, held_out=suite.held_out) for _ in range(count)]


def judge(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> Figures:
    """Shares of right attributes, mean overlap with the best template, mean edge width."""
    analyses = [analyse(picture) for picture in pictures]
    rows = [a.matches(scene) for a, scene in zip(analyses, scenes, strict=True)]
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    result["all"] = float(np.mean([all(row.values()) for row in rows]))
    result["iou"] = float(np.mean([a.iou for a in analyses]))
    widths = [w for w in map(edge_width, pictures) if w is not None]
    result["edge_px"] = float(np.mean(widths)) if widths else float("nan")
    for shape in SHAPES:
        right = [r["shape"] for r, s in zip(rows, scenes, strict=True) if s.shape == shape]
        if right:
            result[f"shape_{shape}"] = float(np.mean(right))
    return result


def corner_scenes(count: int) -> list[Scene]:
    """Single medium and large squares and diamonds."""
    rng = random.Random("evaluate/corners")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng)
        if scene.shape == ("square", "diamond")[len(scenes) % 2] and scene.count == 1:
            size = ("medium", "large")[len(scenes) // 2 % 2]
            scenes.append(replace(scene, size=size, position="center"))
    return scenes


def judge_corners(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> Figures:
    """Means of ``crispness.corners`` over pictures of squares and diamonds."""
    pairs = zip(scenes, pictures, strict=True)
    measured = [c for scene, picture in pairs if (c := corners(picture, scene.shape)) is not None]
    return {
        "iou": float(np.mean([c.iou for c in measured])),
        "reach_percent": float(np.mean([c.reach for c in measured])),
        "largest_reach_percent": float(np.max([c.reach for c in measured])),
        "side_percent": float(np.mean([c.side for c in measured])),
    }


def style_scenes(count: int) -> list[Scene]:
    """Single large centred shapes of every kind."""
    rng = random.Random("evaluate/styles")
    drawn = (sample_scene(rng) for _ in range(count))
    return [replace(s, count=1, size="large", position="center") for s in drawn]


def originals(scenes: Sequence[Scene], size: Size) -> list[Image.Image]:
    """The scenes as the renderer draws them, whose figures no model can exceed."""
    rng = random.Random("evaluate/originals")
    return [Image.fromarray(render(scene, rng, width=size[0], height=size[1])) for scene in scenes]


def weights_megabytes(weights: Path) -> float:
    """Size of all shipped files in MB (1e6 bytes)."""
    return sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) / 1e6


Measured = Iterator[tuple[str, Figures]]


def _measure_prompts(weights: Path, share: float) -> Measured:
    base = load_base(weights)
    for suite in SUITES:
        scenes = suite_scenes(suite, max(4, round(suite.count * share)))
        if suite.name == "seen":
            yield "originals", judge(scenes, originals(scenes, suite.size))
        yield suite.name, judge(scenes, draw_scenes(base, scenes, size=suite.size))


def _measure_corners(weights: Path, share: float) -> Measured:
    scenes = corner_scenes(max(4, round(32 * share)))
    yield "corners of originals", judge_corners(scenes, originals(scenes, SQUARE))
    yield "corners", judge_corners(scenes, draw_scenes(load_base(weights), scenes))


def _measure_refiner(weights: Path, share: float) -> Measured:
    base, scenes = load_base(weights), suite_scenes(Suite("refiner", 48), max(4, round(48 * share)))
    yield "base alone", judge(scenes, draw_scenes(base, scenes))
    refined = draw_scenes(base, scenes, refiner=load_refiner(weights))
    yield "base and refiner", judge(scenes, refined)


def _measure_styles(weights: Path, share: float) -> Measured:
    base, scenes = load_base(weights), style_scenes(max(4, round(24 * share)))
    plain = draw_scenes(base, scenes)
    for style, check in CHECKS.items():
        base.load_lora_weights(weights / "loras", weight_name=f"{style}.safetensors")
        styled = draw_scenes(base, scenes)
        base.unload_lora_weights()
        figures = {
            "with": float(np.mean([check(p, s) for p, s in zip(styled, scenes, strict=True)])),
            "without": float(np.mean([check(p, s) for p, s in zip(plain, scenes, strict=True)])),
        }
        colours = judge(scenes, styled)
        yield f"lora {style}", figures | {k: colours[k] for k in ("background", "colour")}


def _measure_size(weights: Path, share: float) -> Measured:
    yield "size", {"megabytes": weights_megabytes(weights)}


GROUPS: dict[str, Callable[[Path, float], Measured]] = {
    "size": _measure_size,
    "prompts": _measure_prompts,
    "corners": _measure_corners,
    "refiner": _measure_refiner,
    "styles": _measure_styles,
}


def _show(console: Console, name: str, figures: Figures) -> None:
    table = Table(title=name, title_justify="left", show_header=False, min_width=34)
    for key, value in figures.items():
        table.add_row(key, f"{value:.3f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m export.embedded.evaluate", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the prompts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console, report = Console(), dict[str, Figures]()
    for group in options.only:
        for name, figures in GROUPS[group](options.weights, 0.1 if options.quick else 1.0):
            report[name] = figures
            _show(console, name, figures)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
