"""What a request gets that leaves steps and guidance to the model."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from sdxl_bento.diffusion.plan import ModelFacts, plan, resolve
from sdxl_bento.engine.request import Stage
from sdxl_bento.errors import InvalidInput
from sdxl_bento.manifest import Manifest, SizeLimits
from sdxl_bento.order import InputImage, Order
from sdxl_bento.params import GenerateParams
from sdxl_bento.sampler_names import SAMPLER_OF_CLASS


def facts(variant: str, scheduler: str = "EulerDiscreteScheduler") -> ModelFacts:
    manifest: Any = Manifest.model_construct(
        variant=variant,
        base=type("Base", (), {"width": 128, "height": 128})(),
        size_limits=SizeLimits(multiple=16, min=64, max=256),
    )
    config = {"_class_name": scheduler, "num_train_timesteps": 1000, "beta_start": 0.00085,
              "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # fmt: skip
    return ModelFacts("mine", manifest, config, None)


def asked(**given: Any) -> Order:
    params = GenerateParams.model_validate({"prompt": "a red circle", **given})
    return Order("generate", params)


def test_base() -> None:
    params = resolve(asked(), facts("base"), seed=1).params
    assert (params.num_inference_steps, params.guidance_scale) == (25, 5.0)


@pytest.mark.parametrize("variant", ["turbo", "lightning", "lcm"])
def test_distilled(variant: str) -> None:
    params = resolve(asked(), facts(variant), seed=1).params
    assert (params.num_inference_steps, params.guidance_scale) == (4, 0.0)
    assert not params.uses_guidance


def test_what_is_asked_for_is_kept() -> None:
    """Even where it is what another model takes by default."""
    order = asked(num_inference_steps=25, guidance_scale=5.0)
    params = resolve(order, facts("turbo"), seed=1).params
    assert (params.num_inference_steps, params.guidance_scale) == (25, 5.0)


def test_never_fewer_steps_than_the_caller_allows() -> None:
    params = resolve(asked(slo_ms=1000, degrade_min_steps=8), facts("lcm"), seed=1).params
    assert params.num_inference_steps == 8


@pytest.mark.parametrize(
    ("variant", "scheduler"),
    [("turbo", "EulerAncestralDiscreteScheduler"), ("lcm", "LCMScheduler")],
)
def test_the_plan_of_a_distilled_model(variant: str, scheduler: str) -> None:
    model = facts(variant, scheduler)
    job = plan(resolve(asked(), model, seed=1), model)
    assert job.params.sampler == SAMPLER_OF_CLASS[scheduler]
    assert [len(table) for table in job.tables.values()] == [4]
    assert job.rows == 1


def test_the_refiner_takes_over_and_decodes() -> None:
    base = facts("base")
    model = ModelFacts("mine", base.manifest, base.base_scheduler, base.base_scheduler)
    job = plan(resolve(asked(refiner=True, high_noise_frac=0.6), model, seed=1), model)
    assert (job.stages, job.last_stage) == ((Stage.BASE, Stage.REFINE), Stage.REFINE)
    assert [(phase.stage, phase.steps, phase.rows) for phase in job.phases()] == [
        (Stage.ENCODE, 1, 2),
        (Stage.BASE, 15, 2),
        (Stage.REFINE, 10, 2),
        (Stage.DECODE, 1, 1),
    ]
    alone = plan(resolve(asked(), model, seed=1), model)
    assert (alone.stages, alone.last_stage) == ((Stage.BASE,), Stage.BASE)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_both_models_must_have_a_step(share: float) -> None:
    base = facts("base")
    model = ModelFacts("mine", base.manifest, base.base_scheduler, base.base_scheduler)
    params = resolve(
        asked(refiner=True, high_noise_frac=share, num_inference_steps=10), model, seed=1
    )
    with pytest.raises(InvalidInput, match=r"high_noise_frac.*would go to the base model"):
        plan(params, model)


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("pixels", [272, 4096, 72])
def test_sizes_that_the_model_does_not_draw(side: str, pixels: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        resolve(asked(**{side: pixels}), facts("base"), seed=1)
    assert (refused.value.field, refused.value.value) == (side, pixels)
    assert "a multiple of 16 from 64 to 256" in refused.value.allowed


@pytest.mark.parametrize("pixels", [64, 256])
def test_the_smallest_and_the_largest_size(pixels: int) -> None:
    params = resolve(asked(width=pixels, height=pixels), facts("base"), seed=1).params
    assert (params.width, params.height) == (pixels, pixels)


def redrawn(size: tuple[int, int], **given: Any) -> Order:
    picture = InputImage.of(Image.new("RGB", size), b"")
    return Order("img2img", asked(**given).params, {"image": picture})


@pytest.mark.parametrize(
    ("size", "given", "drawn"),
    [
        ((128, 96), {}, (128, 96)),
        ((129, 127), {}, (128, 128)),
        ((135, 136), {}, (128, 144)),
        ((63, 64), {}, (64, 64)),
        ((56, 263), {}, (64, 256)),
        ((1000, 500), {"width": 128}, (128, 64)),
        ((500, 1000), {"width": 96}, (96, 192)),
        ((1000, 300), {"height": 64}, (208, 64)),
        ((1000, 300), {"width": 64, "height": 128}, (64, 128)),
    ],
)
def test_a_picture_is_redrawn_at_the_nearest_size(
    size: tuple[int, int], given: dict[str, int], drawn: tuple[int, int]
) -> None:
    order = resolve(redrawn(size, **given), facts("base"), seed=1)
    assert (order.params.width, order.params.height) == drawn
    assert order.cut_from == (None if size == drawn else size)


@pytest.mark.parametrize(
    ("size", "given"),
    [
        *[((55, 64), {}), ((64, 264), {}), ((1, 1), {}), ((4000, 1000), {})],
        *[((1000, 100), {"width": 256}), ((1, 1_000_000), {"width": 256})],
        ((1_000_000, 1), {"height": 256}),
    ],
)
def test_a_picture_of_a_size_that_is_not_drawn(
    size: tuple[int, int], given: dict[str, int]
) -> None:
    """The error is about what was sent, not about what became of it."""
    with pytest.raises(InvalidInput) as refused:
        resolve(redrawn(size, **given), facts("base"), seed=1)
    assert (refused.value.field, refused.value.value) == ("image", f"{size[0]}x{size[1]}")
    assert "from 64 to 256 pixels" in refused.value.allowed
    assert "width and height" in refused.value.allowed
    with pytest.raises(InvalidInput) as refused:
        resolve(redrawn(size, width=100), facts("base"), seed=1)
    assert (refused.value.field, refused.value.value) == ("width", 100)
