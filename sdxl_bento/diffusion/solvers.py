"""Samplers as tables of coefficients, and the one update that serves any mix of them.

Every sampler here is linear in the latents `x`, the UNet's prediction `m`, the previous
denoised estimate `d_prev` and fresh noise `n`. One step of any of them is

    d  = denoise_x * x + denoise_m * m            the denoised estimate (x0)
    x' = keep * x + now * d + before * d_prev + noise * n

with seven numbers per step. A request builds its table once; a batch gathers one row of each
request's table and makes one fused update, whatever samplers are in it.

Euler and Euler ancestral keep latents as `x0 + sigma * eps` (so the UNet's input is scaled);
the others keep them as `alpha * x0 + sigma * eps` with `alpha^2 + sigma^2 = 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sdxl_bento.diffusion.schedules import Floats, Schedule, build_schedule
from sdxl_bento.errors import InvalidInput

if TYPE_CHECKING:
    import torch

COLUMNS = ("denoise_x", "denoise_m", "keep", "now", "before", "noise")
TCD_ETA = 0.3  # diffusers' default stochasticity ("gamma" in arXiv 2402.19159)
LCM_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class SolverTable:
    """One sampler's whole run, as numbers.

    Attributes:
        timesteps: [n] float64, what the UNet is told at each step.
        input_scale: [n], the UNet sees `input_scale * x`.
        coefficients: [n, 6] float64, the columns named by `COLUMNS`.
        draws: [n] bool, whether diffusers draws noise at this step. It may draw where the
            coefficient is zero; we draw too, so that later draws stay the same numbers.
        start: [n, 2], `x = start[i, 0] * x0 + start[i, 1] * noise` begins at step i from a
            finished image.
        init_noise_sigma: `x = init_noise_sigma * noise` begins at step 0 from nothing.
    """

    sampler: str
    timesteps: Floats
    input_scale: Floats
    coefficients: Floats
    draws: np.ndarray[tuple[int], np.dtype[np.bool_]]
    start: Floats
    init_noise_sigma: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def part(self, begin: int, end: int) -> SolverTable:
        """Steps `begin` to `end`, entered without history: their first step is first order."""
        coefficients = self.coefficients[begin:end].copy()
        if len(coefficients):
            coefficients[0] = self._without_history(begin)
        return SolverTable(
            self.sampler,
            self.timesteps[begin:end],
            self.input_scale[begin:end],
            coefficients,
            self.draws[begin:end],
            self.start[begin:end],
            self.init_noise_sigma,
        )

    def _without_history(self, step: int) -> Floats:
        # Second-order rows spread the weight w of the first-order rule over d and d_prev as
        # w(1 + k) and -wk, so folding d_prev into d gives the first-order rule back.
        row: Floats = self.coefficients[step].copy()
        row[3] += row[4]
        row[4] = 0.0
        return row


@lru_cache(maxsize=256)
def _cached_table(sampler: str, config: tuple[tuple[str, object], ...], steps: int) -> SolverTable:
    return table_of(build_schedule(sampler, dict(config), steps))


def build_table(sampler: str, config: Mapping[str, object], steps: int) -> SolverTable:
    """The table of `sampler` in `steps` steps for a model with scheduler `config`.

    Raises:
        InvalidInput: unknown sampler or impossible step count, see `build_schedule`.
    """
    frozen = tuple(sorted((k, v) for k, v in config.items() if _hashable(v)))
    return _cached_table(sampler, frozen, steps)


def table_of(schedule: Schedule) -> SolverTable:
    """The coefficients for a schedule, in float64."""
    build = _BUILDERS[schedule.sampler]
    with np.errstate(divide="ignore", invalid="ignore"):
        return build(schedule)


def fused_update(
    latents: torch.Tensor,
    prediction: torch.Tensor,
    previous: torch.Tensor,
    noise: torch.Tensor,
    coefficients: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of every row, each by its own sampler.

    Args:
        latents, prediction, previous, noise: [B, 4, h, w] float32.
        coefficients: [B, 6] float32, the columns named by `COLUMNS`.

    Returns:
        The new latents and the denoised estimates, [B, 4, h, w] each.
    """
    c = coefficients.to(latents.dtype)[:, :, None, None, None].unbind(1)
    denoised = c[0] * latents + c[1] * prediction
    return c[2] * latents + c[3] * denoised + c[4] * previous + c[5] * noise, denoised


def _assemble(
    schedule: Schedule,
    input_scale: Floats,
    columns: tuple[Floats, Floats, Floats, Floats, Floats, Floats],
    draws: bool | Floats,
    start: tuple[Floats, Floats],
) -> SolverTable:
    count = len(schedule.timesteps)
    coefficients = np.stack([np.broadcast_to(c, (count,)) for c in columns], axis=1)
    if not np.isfinite(coefficients).all():
        allowed = "a sampler that can start from pure noise (this model's schedule has zero SNR)"
        raise InvalidInput("sampler", schedule.sampler, allowed)
    return SolverTable(
        sampler=schedule.sampler,
        timesteps=schedule.timesteps,
        input_scale=np.broadcast_to(input_scale, (count,)),
        coefficients=coefficients,
        draws=np.broadcast_to(np.asarray(draws, dtype=bool), (count,)),
        start=np.stack(start, axis=1),
        init_noise_sigma=schedule.init_noise_sigma,
    )


_ZERO = np.zeros(1)


def _denoise_in_sigma_space(schedule: Schedule, sigma: Floats) -> tuple[Floats, Floats]:
    if schedule.prediction == "epsilon":
        return np.ones_like(sigma), -sigma
    return 1 / (sigma**2 + 1), -sigma / np.sqrt(sigma**2 + 1)


def _denoise_at_unit_variance(
    schedule: Schedule, alpha: Floats, sigma: Floats
) -> tuple[Floats, Floats]:
    if schedule.prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    return alpha, -sigma


def _euler(schedule: Schedule) -> SolverTable:
    """x' = x + (x - d) / sigma * (sigma' - sigma): arXiv 2206.00364, algorithm 2 without churn."""
    sigma, after = schedule.sigmas[:-1], schedule.sigmas[1:]
    ratio = after / sigma
    scale = 1 / np.sqrt(sigma**2 + 1)
    columns = (*_denoise_in_sigma_space(schedule, sigma), ratio, 1 - ratio, _ZERO, _ZERO)
    return _assemble(schedule, scale, columns, False, (np.ones_like(sigma), sigma))


def _euler_ancestral(schedule: Schedule) -> SolverTable:
    """Euler to sigma_down, then noise of sigma_up, so that the total is sigma' (k-diffusion)."""
    sigma, after = schedule.sigmas[:-1], schedule.sigmas[1:]
    up = np.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
    ratio = np.sqrt(after**2 - up**2) / sigma
    scale = 1 / np.sqrt(sigma**2 + 1)
    columns = (*_denoise_in_sigma_space(schedule, sigma), ratio, 1 - ratio, _ZERO, up)
    return _assemble(schedule, scale, columns, True, (np.ones_like(sigma), sigma))


def _ddim(schedule: Schedule) -> SolverTable:
    """DDIM with eta 0 (arXiv 2010.02502, equation 12)."""
    times = schedule.timesteps.astype(np.int64)
    stride = len(schedule.abar) // len(times)
    before = times - stride
    abar = schedule.abar[times]
    abar_after = np.where(before >= 0, schedule.abar[before.clip(min=0)], schedule.final_abar)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    alpha_after, sigma_after = np.sqrt(abar_after), np.sqrt(1 - abar_after)
    ratio = sigma_after / sigma
    columns = (
        *_denoise_at_unit_variance(schedule, alpha, sigma),
        ratio,
        alpha_after - ratio * alpha,
        _ZERO,
        _ZERO,
    )
    return _assemble(schedule, np.ones(1), columns, False, (alpha, sigma))


def _dpmpp_2m(schedule: Schedule) -> SolverTable:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095, algorithm 2)."""
    return _dpm(schedule, stochastic=False)


def _dpmpp_2m_sde(schedule: Schedule) -> SolverTable:
    """SDE-DPM-Solver++(2M), midpoint (arXiv 2211.01095, appendix)."""
    return _dpm(schedule, stochastic=True)


def _dpm(schedule: Schedule, *, stochastic: bool) -> SolverTable:
    alpha = 1 / np.sqrt(schedule.sigmas**2 + 1)
    sigma = schedule.sigmas * alpha
    log_snr = np.log(alpha) - np.log(sigma)
    h = np.diff(log_snr)  # infinite at the end, where sigma is zero
    decay = np.exp(-2 * h) if stochastic else np.exp(-h)
    keep = sigma[1:] / sigma[:-1] * (np.exp(-h) if stochastic else 1.0)
    weight = alpha[1:] * (1 - decay)
    noise = sigma[1:] * np.sqrt(1 - decay) if stochastic else np.zeros_like(h)
    correction = np.zeros_like(h)  # 1 / (2 r0) with r0 = h_previous / h
    correction[1:] = 0.5 * h[1:] / h[:-1]
    first_order = ~np.isfinite(correction)
    first_order[0] = True
    # Where the schedule ends above zero noise, diffusers is first order on the last of few steps.
    first_order[-1] |= len(h) < 15
    correction[first_order] = 0.0
    columns = (
        *_denoise_at_unit_variance(schedule, alpha[:-1], sigma[:-1]),
        keep,
        weight * (1 + correction),
        -weight * correction,
        noise,
    )
    return _assemble(schedule, np.ones(1), columns, stochastic, (alpha[:-1], sigma[:-1]))


def _discrete(schedule: Schedule) -> tuple[Floats, Floats, Floats, np.ndarray]:
    """abar now and after each step, a mask of steps that are not the last, and the next times."""
    times = schedule.timesteps.astype(np.int64)
    inner = np.arange(len(times)) < len(times) - 1
    following = np.append(times[1:], 0)
    return schedule.abar[times], schedule.abar[following], inner.astype(np.float64), following


def _lcm(schedule: Schedule) -> SolverTable:
    """Latent consistency: jump to the boundary-conditioned estimate, noise it to the next time.

    Source: arXiv 2310.04378, algorithm 3.
    """
    abar, abar_after, inner, _ = _discrete(schedule)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    scaled = schedule.timesteps * schedule.timestep_scaling
    skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
    out = scaled / np.sqrt(scaled**2 + LCM_SIGMA_DATA**2)
    jump = np.where(inner > 0, np.sqrt(abar_after), 1.0)
    columns = (
        *_denoise_at_unit_variance(schedule, alpha, sigma),
        jump * skip,
        jump * out,
        _ZERO,
        inner * np.sqrt(1 - abar_after),
    )
    return _assemble(schedule, np.ones(1), columns, inner, (alpha, sigma))


def _tcd(schedule: Schedule) -> SolverTable:
    """Trajectory consistency with eta 0.3 (arXiv 2402.19159, equation 23).

    The scheduler's own default; diffusers' pipelines pass 0 unless told `eta=0.3`.
    """
    abar, abar_after, inner, following = _discrete(schedule)
    abar_s = schedule.abar[np.floor((1 - TCD_ETA) * following).astype(np.int64)]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    ratio = np.sqrt(1 - abar_s) / sigma
    lift = np.where(inner > 0, np.sqrt(abar_after / abar_s), 1.0)
    columns = (
        *_denoise_at_unit_variance(schedule, alpha, sigma),
        lift * ratio,
        lift * (np.sqrt(abar_s) - ratio * alpha),
        _ZERO,
        inner * np.sqrt(1 - abar_after / abar_s),
    )
    return _assemble(schedule, np.ones(1), columns, inner, (alpha, sigma))


_BUILDERS: Mapping[str, Callable[[Schedule], SolverTable]] = {
    "euler": _euler,
    "euler_a": _euler_ancestral,
    "ddim": _ddim,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_karras": _dpmpp_2m,
    "dpmpp_2m_sde": _dpmpp_2m_sde,
    "dpmpp_2m_sde_karras": _dpmpp_2m_sde,
    "dpmpp_2m_sde_exponential": _dpmpp_2m_sde,
    "lcm": _lcm,
    "tcd": _tcd,
}


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
