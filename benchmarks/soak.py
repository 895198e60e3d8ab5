"""Does a server's memory grow?

One generator draws rounds of random requests: many sizes, adapters, pictures to start from, and
pictures decoded from large files in threads, as uploads are. After each round the freed memory is
given back, as the service does, and what is left is printed. Caches fill up during the first
round; after it, memory must stay within 10 %. The slope is that of a line through the rounds after
the first, with its standard error: it should be zero within twice that.

    python -m benchmarks soak --model TAG [--backend openvino] [--minutes 30 | --rounds 3]

It runs the engine in its own process, without HTTP. The last line of the output is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.adapters import write_variants
from benchmarks.neighbours import draw, random_order, started
from benchmarks.report import aim, machine, number, show, show_aims
from sdxl_bento.config import DEFAULT_MODEL, Settings
from sdxl_bento.order import Order
from sdxl_bento.serving.loading import folder_of, load_parts
from sdxl_bento.serving.memory import MIB, budget, resident, trim

ADAPTERS = 12
TOGETHER = 8  # requests at the same time
SIDES = range(64, 257, 32)  # pixels
UPLOAD = (2400, 1800)  # pixels of a picture that is decoded beside every group of requests
MOST_GROWTH = 0.10


def sized(order: Order, rng: random.Random) -> Order:
    """The order in another of 49 sizes."""
    size = {"width": rng.choice(SIDES), "height": rng.choice(SIDES)}
    return Order(order.task, order.params.model_copy(update=size), order.pictures)


def decode(data: bytes) -> int:
    """What an upload costs: a large picture, for a moment."""
    with Image.open(io.BytesIO(data)) as image:
        return len(image.convert("RGB").tobytes())


def upload() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(UPLOAD, 60).convert("RGB").save(buffer, "png", compress_level=0)
    return buffer.getvalue()


def slope(hours: Sequence[float], values: Sequence[float]) -> tuple[float, float] | None:
    """The slope of the line through the points, in MB an hour, and its standard error."""
    if len(hours) < 3:
        return None
    x, y = np.asarray(hours), np.asarray(values)
    (steepness, start), residuals = np.polyfit(x, y, 1), 0.0
    residuals = float(np.square(y - steepness * x - start).sum())
    spread = float(np.square(x - x.mean()).sum())
    return float(steepness), float(np.sqrt(residuals / (len(x) - 2) / spread))


async def soak(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_variants(args.model, Path(folder), ADAPTERS)
        settings = Settings(
            model=args.model, backend=args.backend, lora_dir=Path(folder), lora_cache_mb=64,
            threads=args.threads,
        )  # fmt: skip
        generator = await started(settings)
        trim()
        rounds = [(0.0, resident() / MIB)]
        rng, data, began = random.Random(args.seed), upload(), time.perf_counter()
        console.print(f"loaded: {rounds[0][1]:.0f} MB")
        while len(rounds) <= args.rounds:
            if args.minutes and time.perf_counter() - began > args.minutes * 60:
                break
            for _ in range(args.requests // TOGETHER):
                orders = [
                    sized(random_order(rng, adapters, args.steps), rng) for _ in range(TOGETHER)
                ]
                await asyncio.gather(
                    *map(draw, [generator] * TOGETHER, orders), asyncio.to_thread(decode, data)
                )
            trim()
            rounds.append(((time.perf_counter() - began) / 3600, resident() / MIB))
            console.print(f"round {len(rounds) - 1}: {rounds[-1][1]:.0f} MB")
        model = next(iter(generator.models.summaries()))
        await generator.stop()
    hours, held = zip(*rounds[1:], strict=True)
    line = slope(hours, held)
    return {
        "backend": model.backend,
        "requests_a_round": args.requests,
        "loaded_mb": round(rounds[0][1]),
        "rounds_mb": [round(value) for value in held],
        "growth": round(max(held) / held[0] - 1, 3),
        "budget_mb": round(_budget(settings) / MIB),
        "slope_mb_an_hour": None if line is None else round(line[0], 1),
        "slope_error": None if line is None else round(line[1], 1),
    }


def _budget(settings: Settings) -> int:
    from sdxl_bento.diffusion.model import Placement
    from sdxl_bento.manifest import Manifest

    folder = folder_of(settings.model)
    placement = Placement.choose(settings.device, settings.dtype)
    info, parts = load_parts(folder, settings, placement)
    for part in parts.values():
        part.unload()
    return budget(Manifest.load(folder), settings, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--requests", type=int, default=2000, help="in a round")
    parser.add_argument("--minutes", type=float, default=0, help="begin no round after so many")
    parser.add_argument("--steps", type=int, default=4, help="at most, of one picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(stderr=True)
    found = asyncio.run(soak(args, console))
    rows = [(name, str(value)) for name, value in found.items()]
    show(console, "Memory, in MB", ("", ""), rows)
    rounds = found["rounds_mb"]
    error = found["slope_error"]
    reached = [
        aim("growth after the first round", found["growth"], MOST_GROWTH, at_least=False),
        aim("first round, share of the budget", round(rounds[0] / found["budget_mb"], 2), 1.0,
            at_least=False),
        aim("slope, in its errors", None if not error else
            round(found["slope_mb_an_hour"] / error, 1), 2.0, at_least=False),
    ]  # fmt: skip
    show_aims(console, reached)
    console.print(f"{number(found['loaded_mb'])} MB when loaded")
    print(json.dumps({"benchmark": "soak", **machine(), "aims": reached, "results": found}))


if __name__ == "__main__":
    main()
