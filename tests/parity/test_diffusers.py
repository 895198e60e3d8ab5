"""The same request gives the image that diffusers' own pipeline gives: at most 1 of 255 off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL.Image import Image

from sdxl_bento.diffusion.schedules import make_scheduler
from sdxl_bento.diffusion.solvers import TCD_ETA
from sdxl_bento.params import GenerateParams, LoraRef
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.generator import Generator
from tests.parity.conftest import draw, largest_difference

PROMPT = "a large red circle on a blue background"
SEED = 5
STEPS = 10


def request(**changes: Any) -> GenerateParams:
    return GenerateParams.model_validate(
        {"prompt": PROMPT, "seed": SEED, "num_inference_steps": STEPS, **changes}
    )


async def ours(generator: Generator, params: GenerateParams, **given: Any) -> Image:
    return (await draw(generator, params, **given)).images[0].image


def theirs(pipeline: Any, sampler: str = "euler", **arguments: Any) -> Any:
    """diffusers' pipeline with the sampler's scheduler, restored afterwards."""
    before = pipeline.scheduler
    pipeline.scheduler = make_scheduler(sampler, dict(before.config))
    if sampler == "tcd":
        arguments["eta"] = TCD_ETA
    call = {
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "generator": torch.Generator().manual_seed(SEED),
        **arguments,
    }
    try:
        return pipeline(**call).images[0]
    finally:
        pipeline.scheduler = before


def image_to_image(base: Any) -> Any:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipeline = StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampler", SAMPLERS)
async def test_text_to_image(generator: Generator, diffusers_base: Any, sampler: str) -> None:
    image = await ours(generator, request(sampler=sampler))
    assert largest_difference(image, theirs(diffusers_base, sampler)) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
async def test_base_and_refiner(
    generator: Generator, diffusers_base: Any, diffusers_refiner: Any, sampler: str
) -> None:
    image = await ours(generator, request(sampler=sampler, refiner=True, high_noise_frac=0.7))
    noise = torch.Generator().manual_seed(SEED)
    latents = theirs(
        diffusers_base, sampler, denoising_end=0.7, output_type="latent", generator=noise
    )
    finished = theirs(
        diffusers_refiner, sampler, image=latents[None], denoising_start=0.7, generator=noise
    )
    assert largest_difference(image, finished) <= 1


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "dpmpp_2m_karras", "lcm"])
async def test_image_to_image(generator: Generator, diffusers_base: Any, sampler: str) -> None:
    start = theirs(diffusers_base, prompt="a green square on a white background")
    image = await ours(generator, request(sampler=sampler, strength=0.6), image=start)
    pipeline = image_to_image(diffusers_base)
    expected = theirs(pipeline, sampler, image=start, strength=0.6)
    assert largest_difference(image, expected) <= 1


async def test_refine_a_finished_image(
    generator: Generator, diffusers_base: Any, diffusers_refiner: Any
) -> None:
    start = theirs(diffusers_base)
    image = (
        (await draw(generator, request(strength=0.5), image=start, task="refine")).images[0].image
    )
    expected = theirs(diffusers_refiner, image=start, strength=0.5)
    assert largest_difference(image, expected) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_scale": 9.0, "guidance_rescale": 0.7},
        {"negative_prompt": ""},
        {"negative_prompt": "green", "negative_prompt_2": "yellow square"},
        {"prompt_2": "a small yellow star"},
        {"width": 192, "height": 128},
        {"original_size": (64, 96), "target_size": (256, 128), "crops_coords_top_left": (8, 16)},
        {
            "negative_original_size": (32, 32),
            "negative_target_size": (64, 64),
            "negative_crops_coords_top_left": (4, 4),
        },
        {"prompt": "word " * 200},
    ],
    ids=lambda options: ",".join(options),
)
async def test_every_parameter_means_what_it_means_there(
    generator: Generator, diffusers_base: Any, options: dict[str, Any]
) -> None:
    image = await ours(generator, request(**options))
    assert largest_difference(image, theirs(diffusers_base, **options)) <= 1


async def test_aesthetic_scores_reach_the_refiner(
    generator: Generator, diffusers_base: Any, diffusers_refiner: Any
) -> None:
    start = theirs(diffusers_base)
    scores = {"aesthetic_score": 2.0, "negative_aesthetic_score": 9.0}
    params = request(strength=0.8, **scores)
    image = (await draw(generator, params, image=start, task="refine")).images[0].image
    expected = theirs(diffusers_refiner, image=start, strength=0.8, **scores)
    assert largest_difference(image, expected) <= 1


@pytest.mark.parametrize("names", [("striped",), ("outlined",), ("striped", "outlined")])
async def test_loras(
    generator: Generator, diffusers_base: Any, model_folder: Any, names: tuple[str, ...]
) -> None:
    scales = [0.9, 0.4][: len(names)]
    for name in names:
        diffusers_base.load_lora_weights(
            model_folder / "loras" / f"{name}.safetensors", adapter_name=name
        )
    diffusers_base.set_adapters(list(names), scales)
    try:
        expected = theirs(diffusers_base)
    finally:
        diffusers_base.unload_lora_weights()
    refs = [LoraRef(name=n, scale=s) for n, s in zip(names, scales, strict=True)]
    image = await ours(generator, request(loras=refs))
    assert largest_difference(image, expected) <= 1
    assert largest_difference(image, await ours(generator, request())) > 20


async def test_several_images_are_consecutive_seeds(
    generator: Generator, diffusers_base: Any
) -> None:
    generation = await draw(generator, request(num_images=3))
    assert [image.seed for image in generation.images] == [SEED, SEED + 1, SEED + 2]
    for image in generation.images:
        noise = torch.Generator().manual_seed(image.seed)
        assert largest_difference(image.image, theirs(diffusers_base, generator=noise)) <= 1
