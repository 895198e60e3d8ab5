"""An image does not depend on who shared its batch, on when they came, nor on when they left."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from PIL import Image

from sdxl_bento.config import Settings
from sdxl_bento.errors import RequestCancelled
from sdxl_bento.params import GenerateParams
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.generator import Generator
from tests.parity.conftest import draw, largest_difference, psnr, started

SHAPES = ("circle", "square", "heart")
COLOURS = ("red", "green", "white", "yellow")


def random_request(rng: random.Random) -> GenerateParams:
    width, height = rng.choice([(128, 128), (128, 128), (128, 128), (192, 128), (64, 96)])
    options: dict[str, Any] = {
        "prompt": f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} on a blue background",
        "width": width,
        "height": height,
        "seed": rng.randrange(10_000),
        "sampler": rng.choice(SAMPLERS),
        "num_inference_steps": rng.randint(3, 14),
        "guidance_scale": rng.choice([1.0, 3.0, 5.0, 7.5]),
        "refiner": rng.random() < 0.3,
        "high_noise_frac": rng.choice([0.5, 0.7]),
        "loras": [
            {"name": name, "scale": rng.choice([0.5, 1.0])}
            for name in ("striped", "outlined")
            if rng.random() < 0.3
        ],
    }
    return GenerateParams.model_validate(options)


async def later(generator: Generator, params: GenerateParams, delay: float) -> Image.Image:
    await asyncio.sleep(delay)
    return (await draw(generator, params)).images[0].image


async def together(
    generator: Generator, requests: list[GenerateParams], rng: random.Random
) -> list[Image.Image]:
    """All requests at random times, beside one that is cancelled half way."""
    doomed = GenerateParams(prompt="a black star", num_inference_steps=100, seed=1)
    task = asyncio.create_task(draw(generator, doomed, request_id="doomed"))
    drawing = [later(generator, params, rng.uniform(0, 0.5)) for params in requests]
    images = await asyncio.gather(*drawing, _cancel(generator, rng.uniform(0.1, 0.6)))
    with pytest.raises(RequestCancelled):
        await task
    return [image for image in images if image is not None]


async def _cancel(generator: Generator, delay: float) -> None:
    await asyncio.sleep(delay)
    generator.calls.cancel("doomed")


@pytest.mark.parametrize("seed", range(4))
async def test_float32(generator: Generator, seed: int) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(8)]
    mixed = await together(generator, requests, rng)
    for params, image in zip(requests, mixed, strict=True):
        alone = (await draw(generator, params)).images[0].image
        assert largest_difference(image, alone) <= 1, params


async def test_bfloat16(embedded_tag: str) -> None:
    generator = await started(Settings(model=embedded_tag, dtype="bf16"))
    rng = random.Random(9)
    requests = [random_request(rng) for _ in range(4)]
    mixed = await together(generator, requests, rng)
    for params, image in zip(requests, mixed, strict=True):
        alone = (await draw(generator, params)).images[0].image
        assert psnr(image, alone) >= 40, params
    await generator.stop()


async def test_a_cancelled_call_leaves_nothing_behind(generator: Generator) -> None:
    params = GenerateParams(prompt="a red circle", num_inference_steps=150, num_images=4)
    task = asyncio.create_task(draw(generator, params))
    while generator.activity.stats()["running"] != 4:  # noqa: ASYNC110  another thread changes it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while generator.activity.stats()["running"] != 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
