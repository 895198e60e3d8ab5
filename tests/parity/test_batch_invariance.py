"""An image does not depend on who shared its batch, on when they came, nor on when they left.

`python -m benchmarks neighbours` tries the same with hundreds of mixes.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from benchmarks.neighbours import Likeness, compare, random_order
from sdxl_bento.config import Settings
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.generator import Generator
from tests.parity.conftest import draw, started

ADAPTERS = ("striped", "outlined")


async def of_random_mixes(generator: Generator, seed: int, mixes: int, requests: int) -> Likeness:
    """How alike the pictures of some mixes are to the same pictures drawn alone."""
    rng, total = random.Random(seed), Likeness()
    for _ in range(mixes):
        orders = [random_order(rng, ADAPTERS, most_steps=8) for _ in range(requests)]
        total.add_all(await compare(generator, orders, rng, spread_s=0.3))
    assert total.pictures >= mixes * requests
    return total


async def test_eager_in_float32(generator: Generator) -> None:
    found = await of_random_mixes(generator, seed=1, mixes=3, requests=7)
    assert found.worst_levels <= 1, found.beyond
    assert not found.beyond


async def test_eager_in_bfloat16(embedded_tag: str) -> None:
    generator = await started(Settings(model=embedded_tag, dtype="bf16", prompt_cache_mb=0))
    found = await of_random_mixes(generator, seed=9, mixes=2, requests=6)
    await generator.stop()
    assert not found.beyond, found.beyond


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
async def test_compiled(compiled_tag: str, backend: str) -> None:
    """To the byte: on one thread neither runtime rounds by the shape of its batch."""
    settings = Settings(
        model=compiled_tag, backend=backend, allow_fallback=False, prompt_cache_mb=0
    )
    generator = await started(settings)
    found = await of_random_mixes(generator, seed=5, mixes=3, requests=7)
    await generator.stop()
    assert found.same == found.pictures, (found.worst_levels, found.worst_db, found.beyond)


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
