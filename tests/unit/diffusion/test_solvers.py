"""Every sampler against diffusers' scheduler, step by step, and what the tables promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sdxl_bento.diffusion.schedules import default_sampler, make_scheduler
from sdxl_bento.diffusion.solvers import COLUMNS, SolverTable, build_table, fused_update
from sdxl_bento.errors import InvalidInput
from sdxl_bento.sampler_names import SAMPLERS

# diffusers builds its sigmas by np.array(tensor), which numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SDXL: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    "trailing": {**SDXL, "timestep_spacing": "trailing"},
    "linspace": {**SDXL, "timestep_spacing": "linspace"},
    "v_prediction": {**SDXL, "prediction_type": "v_prediction"},
    "zero_snr": {
        **SDXL,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    "karras": {**SDXL, "use_karras_sigmas": True},
    "exponential": {**SDXL, "use_exponential_sigmas": True},
    "sigma_min": {**SDXL, "final_sigmas_type": "sigma_min"},
}
# diffusers computes in float32: this is its rounding over a whole run, relative to the latents.
TOLERANCE = 2e-5


def fake_unet(x: torch.Tensor, t: float) -> torch.Tensor:
    """Any smooth function of the input and the time, so that errors would compound."""
    return torch.tanh(x * (0.5 + t / 2000)) + 0.1 * torch.sin(3 * x)


def set_timesteps(scheduler: Any, steps: int, begin: int) -> None:
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)


def run_diffusers(
    sampler: str, config: dict[str, Any], steps: int, begin: int = 0
) -> list[torch.Tensor]:
    scheduler = make_scheduler(sampler, config)
    set_timesteps(scheduler, steps, begin)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((1, 4, 4, 4), generator=generator) * float(scheduler.init_noise_sigma)
    extra = {} if sampler in ("euler", "ddim") else {"generator": generator}
    trail = []
    for t in scheduler.timesteps[begin:]:
        prediction = fake_unet(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(prediction, t, x, return_dict=False, **extra)[0]
        trail.append(x)
    return trail


def run_table(table: SolverTable) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((1, 4, 4, 4), generator=generator) * table.init_noise_sigma
    previous = torch.zeros_like(x)
    trail = []
    for i in range(len(table)):
        prediction = fake_unet(x * table.input_scale[i], table.timesteps[i])
        noise = torch.randn(x.shape, generator=generator) if table.draws[i] else torch.zeros(())
        row = torch.from_numpy(table.coefficients[i : i + 1])
        x, previous = fused_update(x, prediction, previous, noise.expand_as(x), row.float())
        trail.append(x)
    return trail


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
        assert error < TOLERANCE, f"step {step}: {error}"


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50])
@pytest.mark.parametrize("config", ["sdxl", "trailing", "linspace", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_equals_diffusers(sampler: str, config: str, steps: int) -> None:
    table = build_table(sampler, CONFIGS[config], steps)
    assert_same(run_table(table), run_diffusers(sampler, CONFIGS[config], steps))


@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        ("euler", "karras"),
        ("euler", "exponential"),
        ("euler", "zero_snr"),
        ("euler_a", "zero_snr"),
        ("ddim", "zero_snr"),
        ("dpmpp_2m", "exponential"),
        ("dpmpp_2m_sde", "exponential"),
        ("dpmpp_2m_karras", "exponential"),
        ("dpmpp_2m_sde_exponential", "karras"),
    ],
)
def test_model_config_is_followed(sampler: str, config: str) -> None:
    table = build_table(sampler, CONFIGS[config], 20)
    assert_same(run_table(table), run_diffusers(sampler, CONFIGS[config], 20))


@pytest.mark.parametrize("steps", [1, 2, 14, 15, 25])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_karras"])
def test_schedules_that_end_above_zero_noise(sampler: str, steps: int) -> None:
    """DPM++'s last step is then of first order if there are fewer than 15, else of second."""
    table = build_table(sampler, CONFIGS["sigma_min"], steps)
    assert_same(run_table(table), run_diffusers(sampler, CONFIGS["sigma_min"], steps))


@pytest.mark.parametrize("begin", [1, 7, 19])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_starts_like_diffusers_from_a_begin_index(sampler: str, begin: int) -> None:
    table = build_table(sampler, SDXL, 20)
    assert_same(run_table(table.part(begin, 20)), run_diffusers(sampler, SDXL, 20, begin))


@pytest.mark.parametrize("begin", [0, 1, 7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_begins_without_history_whatever_came_before(sampler: str, begin: int) -> None:
    """The refiner takes over latents whose last estimate is the base model's."""
    first = build_table(sampler, SDXL, 20).part(begin, 20).coefficients[0]
    assert first[COLUMNS.index("before")] == 0.0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_start_noises_a_finished_image_like_diffusers(sampler: str) -> None:
    table = build_table(sampler, SDXL, 20)
    scheduler = make_scheduler(sampler, SDXL)
    set_timesteps(scheduler, 20, 8)
    x0, noise = torch.randn(2, 1, 4, 4, 4).unbind(0)
    theirs = scheduler.add_noise(x0, noise, scheduler.timesteps[8:9])
    ours = table.start[8, 0] * x0 + table.start[8, 1] * noise
    assert (ours - theirs).abs().max() < 1e-5


def test_a_mixed_batch_equals_each_sampler_alone() -> None:
    tables = [build_table(name, SDXL, 20) for name in SAMPLERS]
    generator = torch.Generator().manual_seed(0)
    x, m, before, noise = (torch.randn(len(tables), 4, 8, 8, generator=generator) for _ in "1234")
    rows = torch.from_numpy(np.stack([t.coefficients[i + 3] for i, t in enumerate(tables)])).float()
    together, denoised = fused_update(x, m, before, noise, rows)
    for i in range(len(tables)):
        one = slice(i, i + 1)
        alone, d = fused_update(x[one], m[one], before[one], noise[one], rows[one])
        assert torch.equal(alone[0], together[i])
        assert torch.equal(d[0], denoised[i])


def test_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"sampler: got 'heun'.*euler.*tcd"):
        build_table("heun", SDXL, 10)


@pytest.mark.parametrize(("sampler", "steps"), [("lcm", 51), ("tcd", 60)])
def test_impossible_step_count_names_the_field(sampler: str, steps: int) -> None:
    with pytest.raises(InvalidInput, match="num_inference_steps"):
        build_table(sampler, SDXL, steps)


def test_zero_snr_with_epsilon_is_refused_where_it_would_divide_by_zero() -> None:
    config = {**CONFIGS["zero_snr"], "prediction_type": "epsilon"}
    with pytest.raises(InvalidInput, match="zero SNR"):
        build_table("ddim", config, 10)


def test_sample_prediction_is_refused() -> None:
    with pytest.raises(InvalidInput, match="epsilon or v_prediction"):
        build_table("euler", {**SDXL, "prediction_type": "sample"}, 10)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SDXL, "euler"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "UniPCMultistepScheduler"}, "dpmpp_2m"),  # the nearest
        ({"_class_name": "PNDMScheduler"}, "euler"),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "use_karras_sigmas": True,
            },
            "dpmpp_2m_sde_karras",
        ),
    ],
)
def test_the_models_own_scheduler_names_the_default_sampler(
    config: dict[str, Any], name: str
) -> None:
    assert default_sampler(config) == name


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde_karras"])
def test_a_models_config_does_not_make_another_sampler_of_it(sampler: str) -> None:
    """2M is of second order, by the midpoint rule, without thresholds, whatever a model prefers."""
    other = {"solver_order": 3, "solver_type": "heun", "thresholding": True}
    assert_same(
        run_table(build_table(sampler, SDXL, 10)), run_diffusers(sampler, {**SDXL, **other}, 10)
    )
    config = make_scheduler(sampler, {**SDXL, **other}).config
    assert (config.solver_order, config.solver_type, config.thresholding) == (2, "midpoint", False)
