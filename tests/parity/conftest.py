"""One engine and diffusers' own pipelines over the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from export.likeness import picture_psnr_db
from sdxl_bento.config import Settings
from sdxl_bento.order import InputImage, Order, Task
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.generator import Generator
from sdxl_bento.serving.loading import folder_of
from sdxl_bento.serving.results import Generation


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_folder(embedded_tag: str) -> Path:
    return folder_of(embedded_tag)


async def started(settings: Settings) -> Generator:
    generator = Generator(settings)
    generator.start()
    while generator.state == "loading":  # noqa: ASYNC110  another thread changes it
        await asyncio.sleep(0.02)
    assert generator.state == "ready", generator.state_reason
    return generator


async def draw(
    generator: Generator,
    params: GenerateParams,
    *,
    image: Image | None = None,
    task: Task = "img2img",
    **options: Any,
) -> Generation:
    """The pictures of one call; with an `image` it is redrawn, by `task`."""
    order = Order("generate", params)
    if image is not None:
        order = Order(task, params, {"image": InputImage.of(image, b"")})
    return await generator.draw(generator.resolve(order), **options)


@pytest.fixture(scope="module")
def engine(embedded_tag: str) -> Iterator[Generator]:
    """One loaded generator for all tests of a module."""
    generator = asyncio.run(started(Settings(model=embedded_tag)))
    yield generator
    asyncio.run(generator.stop())
    idle = {"state": "stopped", "waiting": 0, "running": 0}
    assert generator.activity.stats().items() >= idle.items()


@pytest.fixture
def generator(engine: Generator) -> Iterator[Generator]:
    yield engine
    idle = {"state": "ready", "waiting": 0, "running": 0}
    assert engine.activity.stats().items() >= idle.items()


def largest_difference(a: Image, b: Image) -> int:
    """Largest difference of two pictures' pixels, of 255."""
    first, second = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (a, b))
    assert first.shape == second.shape
    return int(np.abs(first - second).max())


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB."""
    return picture_psnr_db(a, b)


@pytest.fixture(scope="module")
def diffusers_base(model_folder: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return _quiet(StableDiffusionXLPipeline, model_folder / "base")


@pytest.fixture(scope="module")
def diffusers_refiner(model_folder: Path) -> Any:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    return _quiet(StableDiffusionXLImg2ImgPipeline, model_folder / "refiner")


def _quiet(cls: Any, folder: Path) -> Any:
    pipeline = cls.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
