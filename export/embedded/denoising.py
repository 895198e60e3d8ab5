"""The noise schedule and the loss of one training step, for base and refiner."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.embedded.networks import EulerDiscreteScheduler, Unet

TIMESTEPS = 1000


def build_scheduler() -> Any:
    """SDXL's noise schedule."""
    return EulerDiscreteScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


_ALPHAS: Tensor = build_scheduler().alphas_cumprod.float()


@dataclass(frozen=True)
class Conditions:
    """The conditioning inputs of a UNet, one row per sample."""

    hidden: Tensor  # (n, 77, cross-attention width)
    pooled: Tensor  # (n, 64)
    ids: Tensor  # (n, 6) for the base, (n, 5) for the refiner


def alphas(times: Tensor) -> Tensor:
    """The schedule's share of signal at ``times``, (n, 1, 1, 1)."""
    return _ALPHAS[times].view(-1, 1, 1, 1)


def stratified_times(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps below ``limit``, one in each equal part, so that batches differ less."""
    places = torch.arange(count) + torch.rand(count, generator=generator)
    return (places * (limit / count)).long().clamp(max=limit - 1)


def add_noise(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """The noisy latents that the UNet sees."""
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def loss_weight(alpha: Tensor) -> Tensor:
    """Weight per sample (n,) that grows with the noise, at which layout and shape are decided."""
    return (1 / alpha).sqrt().clamp(max=8).flatten() / 2


def predict(unet: Unet, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
    """The noise that the UNet predicts."""
    answer: Tensor = unet(
        noisy,
        times,
        conditions.hidden,
        added_cond_kwargs={"text_embeds": conditions.pooled, "time_ids": conditions.ids},
        return_dict=False,
    )[0]
    return answer


def twin_loss(
    unet: Unet,
    latents: Tensor,
    noise: Tensor,
    times: Tensor,
    captioned: Conditions,
    null: Conditions,
    twins: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted error of captioned samples and of their ``twins`` (row numbers) without caption.

    A twin has the same noisy latents as its captioned sample and that sample's answer as target.
    Averaged over captions this is the right answer for the null condition, with less variance than
    the noise itself; and errors that both answers share cancel in classifier-free guidance, which
    would multiply them otherwise.
    """
    count, alpha = len(latents), alphas(times)
    noisy = add_noise(latents, noise, alpha)
    both = Conditions(
        torch.cat([captioned.hidden, null.hidden]),
        torch.cat([captioned.pooled, null.pooled]),
        torch.cat([captioned.ids, null.ids]),
    )
    rows = torch.cat([torch.arange(count), twins])
    answer = predict(unet, noisy[rows], times[rows], both)
    target = torch.cat([noise, answer[:count].detach()[twins]])
    error = (answer - target).square().mean((1, 2, 3))
    figures = {"eps": error[:count].mean().item(), "null": error[count:].mean().item()}
    return (loss_weight(alpha[rows]) * error).mean(), figures
