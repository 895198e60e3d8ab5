"""Is a picture the same whoever else is being served?

Every mix is a handful of random requests: sizes, samplers, step counts, guidance and its
rescaling, adapters, the refiner, pictures to start from, several pictures in one call. They are
drawn together, arriving at random times beside one that is cancelled half way, and each is drawn
alone, before or after. The two must be the same to the byte, or, where the runtime rounds by the
shape of its batch, differ by at most two of 255 levels and have a PSNR of at least 50 dB.

Prompts are not cached, so that every picture encodes its own. There are more adapters than an
exported model brings: variants of its own, up to four in one request.

    python -m benchmarks neighbours --model TAG [--contenders openvino eager-bf16] [--mixes 500]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.adapters import write_variants
from benchmarks.report import aim, machine, number, show, show_aims
from export.likeness import picture_psnr_db
from sdxl_bento.config import DEFAULT_MODEL, Settings
from sdxl_bento.errors import RequestCancelled
from sdxl_bento.order import InputImage, Order
from sdxl_bento.params import GenerateParams
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.generator import Generator

MOST_LEVELS = 2  # of 255 that a pixel may differ by
LEAST_DB = 50.0
ADAPTERS = 8  # variants of the model's own
REQUESTS = (3, 8)  # in one mix
SIZES = ((128, 128), (128, 128), (128, 128), (192, 128), (64, 96))
SHAPES = ("circle", "square", "heart", "star")
COLOURS = ("red", "green", "white", "yellow")


def random_order(rng: random.Random, adapters: Sequence[str], most_steps: int = 14) -> Order:
    """A call of one or two pictures with whatever changes how a row is computed."""
    width, height = rng.choice(SIZES)
    guided = rng.random() < 0.7
    options: dict[str, Any] = {
        "prompt": f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} on a blue background",
        "width": width,
        "height": height,
        "seed": rng.randrange(10_000),
        "sampler": rng.choice(SAMPLERS),
        "num_inference_steps": rng.randint(3, most_steps),
        "guidance_scale": rng.choice([3.0, 5.0, 7.5]) if guided else 1.0,
        "guidance_rescale": rng.choice([0.0, 0.0, 0.7]) if guided else 0.0,
        "num_images": rng.choice([1, 1, 1, 2]),
        "loras": [
            {"name": name, "scale": rng.choice([-0.5, 0.5, 1.0, 2.0])}
            for name in rng.sample(
                list(adapters), min(len(adapters), rng.choice([0, 0, 0, 1, 1, 2, 4]))
            )
        ],
    }
    if guided and rng.random() < 0.3:
        options["negative_prompt"] = rng.choice(COLOURS)
    if rng.random() < 0.2:
        image = Image.effect_noise((width, height), 60).convert("RGB")
        params = GenerateParams.model_validate(options | {"strength": rng.choice([0.5, 0.9])})
        return Order("img2img", params, {"image": InputImage.of(image, image.tobytes())})
    if rng.random() < 0.25:
        steps = max(4, options["num_inference_steps"])  # so that both models have some
        options |= {"refiner": True, "high_noise_frac": 0.5, "num_inference_steps": steps}
    return Order("generate", GenerateParams.model_validate(options))


async def started(settings: Settings) -> Generator:
    """A generator that is ready.

    Raises:
        RuntimeError: it cannot be.
    """
    generator = Generator(settings)
    generator.start()
    while generator.state == "loading":  # noqa: ASYNC110  another thread changes it
        await asyncio.sleep(0.02)
    if generator.state != "ready":
        raise RuntimeError(generator.state_reason)
    return generator


async def draw(generator: Generator, order: Order, delay: float = 0.0) -> list[Image.Image]:
    await asyncio.sleep(delay)
    drawn = await generator.draw(generator.resolve(order))
    return [picture.image for picture in drawn.images]


async def draw_together(
    generator: Generator, orders: Sequence[Order], rng: random.Random, spread_s: float
) -> list[list[Image.Image]]:
    """The pictures of all orders, which arrive within `spread_s` beside one that is cancelled."""
    doomed = GenerateParams(prompt="a black star", num_inference_steps=100, seed=1)
    task = asyncio.create_task(draw(generator, Order("generate", doomed)))
    delays = [rng.uniform(0, spread_s) for _ in orders]
    cancelling = asyncio.get_running_loop().call_later(rng.uniform(0.1, 1) * spread_s, task.cancel)
    try:
        return await asyncio.gather(*map(draw, [generator] * len(orders), orders, delays))
    finally:
        cancelling.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError, RequestCancelled):
            await task


@dataclass
class Likeness:
    """How alike pairs of pictures are."""

    pictures: int = 0
    same: int = 0  # to the byte
    worst_levels: int = 0
    worst_db: float = math.inf
    beyond: list[str] = field(default_factory=list)  # the parameters of those that differ too much

    def add(self, order: Order, together: Image.Image, alone: Image.Image) -> None:
        a, b = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (together, alone))
        levels = int(np.abs(a - b).max())
        self.pictures += 1
        self.same += not levels
        if not levels:
            return
        db = picture_psnr_db(together, alone)
        self.worst_levels, self.worst_db = max(self.worst_levels, levels), min(self.worst_db, db)
        if levels > MOST_LEVELS or db < LEAST_DB:
            self.beyond.append(f"{levels} levels, {db:.1f} dB: {order.task} {order.params!r}")

    def add_all(self, other: Likeness) -> None:
        self.pictures, self.same = self.pictures + other.pictures, self.same + other.same
        self.worst_levels = max(self.worst_levels, other.worst_levels)
        self.worst_db = min(self.worst_db, other.worst_db)
        self.beyond += other.beyond


async def compare(
    generator: Generator, orders: Sequence[Order], rng: random.Random, spread_s: float = 0.1
) -> Likeness:
    """Draw the orders together, and each alone; how alike the pictures are."""
    likeness = Likeness()
    alone_first = rng.random() < 0.5
    together: list[list[Image.Image]] = []
    if not alone_first:
        together = await draw_together(generator, orders, rng, spread_s)
    alone = [await draw(generator, order) for order in orders]
    if alone_first:
        together = await draw_together(generator, orders, rng, spread_s)
    for order, beside, apart in zip(orders, together, alone, strict=True):
        for pair in zip(beside, apart, strict=True):
            likeness.add(order, *pair)
    return likeness


async def measure(args: argparse.Namespace, contender: str, console: Console) -> dict[str, Any]:
    backend, _, dtype = contender.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_variants(args.model, Path(folder), ADAPTERS)
        settings = Settings(
            model=args.model,
            backend=backend,
            dtype=dtype or "auto",  # type: ignore[arg-type]
            allow_fallback=False,
            lora_dir=Path(folder),
            prompt_cache_mb=0,
            threads=args.threads,
        )
        generator = await started(settings)
        total, rng = Likeness(), random.Random(args.seed)
        for index in range(args.mixes):
            orders = [
                random_order(rng, adapters, args.steps) for _ in range(rng.randint(*REQUESTS))
            ]
            one = await compare(generator, orders, rng)
            for line in one.beyond:
                console.print(f"{contender}, mix {index}: {line}")
            total.add_all(one)
        await generator.stop()
    return {
        "contender": contender,
        "mixes": args.mixes,
        "pictures": total.pictures,
        "same": total.same,
        "worst_levels": total.worst_levels,
        "worst_db": None if math.isinf(total.worst_db) else round(total.worst_db, 1),
        "beyond": len(total.beyond),
    }


def report(console: Console, results: Sequence[dict[str, Any]]) -> None:
    header = ("", "mixes", "pictures", "same to the byte", "worst, levels", "worst, dB", "beyond")
    lines = [
        (
            r["contender"], str(r["mixes"]), str(r["pictures"]), str(r["same"]),
            str(r["worst_levels"]), number(r["worst_db"]), str(r["beyond"]),
        )
        for r in results
    ]  # fmt: skip
    show(console, "Pictures in company, against the same pictures alone", header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="with the backends to compare")
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["openvino", "onnx", "eager-fp32", "eager-bf16"],
        help="backends or their labels, with a dtype for eager",
    )
    parser.add_argument("--mixes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=6, help="at most, of one picture")
    parser.add_argument("--seed", type=int, default=0, help="other mixes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(stderr=True)
    results = [asyncio.run(measure(args, each, console)) for each in args.contenders]
    report(console, results)
    reached = [
        aim(f"{r['contender']}: pictures beyond the limits", r["beyond"], 0, at_least=False)
        for r in results
    ]
    show_aims(console, reached)
    document = {"benchmark": "neighbours", **machine(), "threads": args.threads}
    print(json.dumps(document | {"aims": reached, "results": results}))


if __name__ == "__main__":
    main()
