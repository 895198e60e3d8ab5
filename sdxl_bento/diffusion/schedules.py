"""Noise schedules: which timesteps and sigmas a sampler visits, read from diffusers' schedulers.

Only the *schedule* comes from diffusers (spacing, Karras and exponential sigmas, zero-SNR
rescale, v-prediction are its configuration). The step itself is `solvers`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_bento.errors import InvalidInput
from sdxl_bento.sampler_names import NEAREST_OF_CLASS, SAMPLER_OF_CLASS, SAMPLERS, SamplerName

Floats = npt.NDArray[np.float64]
DEFAULT_SAMPLER: SamplerName = "euler"

# A model's own configuration may name another spacing, and diffusers refuses two of them.
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_KARRAS = dict.fromkeys(_SPACINGS, False) | {"use_karras_sigmas": True}
_EXPONENTIAL = dict.fromkeys(_SPACINGS, False) | {"use_exponential_sigmas": True}

# sampler -> (diffusers class, configuration that makes it that sampler)
_CLASS_OF_SAMPLER: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "thresholding": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", **_KARRAS},
    ),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", **_KARRAS},
    ),
    "dpmpp_2m_sde_exponential": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", **_EXPONENTIAL},
    ),
    "lcm": ("LCMScheduler", {"clip_sample": False, "thresholding": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False, "thresholding": False}),
}
_DPM = {"solver_order": 2, "solver_type": "midpoint", "thresholding": False}
_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Schedule:
    """The nodes of one sampler for one step count.

    Attributes:
        timesteps: [n], what the UNet is told.
        sigmas: [n + 1], noise over signal (`sqrt((1 - abar) / abar)`), for the sigma samplers.
        abar: [T], the cumulative product of alphas of the training schedule.
        final_abar: abar after the last step, for samplers in discrete time.
        prediction: `epsilon` or `v_prediction`.
        init_noise_sigma: scale of the first latents.
    """

    sampler: str
    timesteps: Floats
    sigmas: Floats
    abar: Floats
    final_abar: float
    prediction: str
    init_noise_sigma: float
    timestep_scaling: float


def build_schedule(sampler: str, config: Mapping[str, object], steps: int) -> Schedule:
    """The schedule of `sampler` in `steps` steps for a model with scheduler `config`.

    Raises:
        InvalidInput: an unknown sampler, a step count the sampler does not allow, or a model
            whose prediction type is not linear in the latents.
    """
    scheduler = make_scheduler(sampler, config)
    if scheduler.config.prediction_type not in _PREDICTIONS:
        raise InvalidInput("sampler", sampler, f"a model that predicts {' or '.join(_PREDICTIONS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.set_timesteps(steps)
    except (ValueError, IndexError) as error:
        raise InvalidInput("num_inference_steps", steps, f"{sampler} says: {error}") from error
    sigmas = getattr(scheduler, "sigmas", None)
    count = len(scheduler.timesteps)
    return Schedule(
        sampler=sampler,
        timesteps=np.asarray(scheduler.timesteps, dtype=np.float64),
        sigmas=np.zeros(count + 1) if sigmas is None else np.asarray(sigmas, dtype=np.float64),
        abar=np.asarray(scheduler.alphas_cumprod, dtype=np.float64),
        final_abar=float(getattr(scheduler, "final_alpha_cumprod", 1.0)),
        prediction=scheduler.config.prediction_type,
        init_noise_sigma=float(scheduler.init_noise_sigma),
        timestep_scaling=float(scheduler.config.get("timestep_scaling", 10.0)),
    )


def make_scheduler(sampler: str, config: Mapping[str, object]) -> Any:
    """diffusers' scheduler for `sampler` on a model with scheduler `config`."""
    import diffusers

    if sampler not in _CLASS_OF_SAMPLER:
        raise InvalidInput("sampler", sampler, "one of " + ", ".join(SAMPLERS))
    name, overrides = _CLASS_OF_SAMPLER[sampler]
    extra = dict(overrides, **(_DPM if name == "DPMSolverMultistepScheduler" else {}))
    make: Callable[..., Any] = getattr(diffusers, name).from_config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(dict(config), **extra)


def scheduler_note(config: Mapping[str, object]) -> str:
    """How requests that name no sampler differ from the model's own scheduler; empty if not."""
    own = str(config.get("_class_name"))
    sampler = default_sampler(config)
    if own not in SAMPLER_OF_CLASS:
        return (
            f"the model's scheduler {own} is no sampler here; {sampler} is the default in its place"
        )
    name, forced = _CLASS_OF_SAMPLER[sampler]
    if name == "DPMSolverMultistepScheduler":
        forced = {**forced, **_DPM}
    ignored = [
        f"{key}={config[key]}" for key, value in forced.items() if config.get(key, value) != value
    ]
    if not ignored:
        return ""
    return f"of the model's scheduler {own}, {', '.join(ignored)} is not followed by {sampler} here"


def default_sampler(config: Mapping[str, object]) -> SamplerName:
    """The sampler that a model's own scheduler config stands for, or else the nearest one."""
    own = str(config.get("_class_name"))
    name = SAMPLER_OF_CLASS.get(own) or NEAREST_OF_CLASS.get(own, DEFAULT_SAMPLER)
    if name != "dpmpp_2m":
        return name
    karras = bool(config.get("use_karras_sigmas"))
    if config.get("algorithm_type") == "sde-dpmsolver++":
        return "dpmpp_2m_sde_karras" if karras else "dpmpp_2m_sde"
    return "dpmpp_2m_karras" if karras else "dpmpp_2m"
