"""Trains the whole autoencoder once more, on whole pictures and for sharp edges.

The first training (``vae``) settles colours and layout of the latents on cheap crops; this one
teaches the encoder to keep corners and small stars. It starts from folded latents (spread
1 / SCALING) and they are folded again afterwards, as their statistics drift a little.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from export.embedded.images import BIG, SQUARE, TALL, WIDE, Size, mixed_pool, normalise
from export.embedded.training import Plan, Trainer, batch_indices
from export.embedded.vae import SCALING, STYLE_WEIGHTS, edge_weight, sharp_loss

_COUNTS: dict[Size, int] = {SQUARE: 4500, WIDE: 300, TALL: 300, BIG: 300}
_MIX: tuple[tuple[float, Size, int], ...] = (
    (0.80, SQUARE, 4),
    (0.05, WIDE, 3),
    (0.05, TALL, 3),
    (0.10, BIG, 1),
)
_NOISE = 0.08  # largest spread of the noise on the latents, whose own spread is about 1


def train(plan: Plan, work: Path, vae: AutoencoderKL) -> AutoencoderKL:
    """Train ``vae`` in place."""
    pools = {s: mixed_pool(n, s, plan.seed + 41, STYLE_WEIGHTS) for s, n in _COUNTS.items()}
    vae.train().to(memory_format=torch.channels_last)

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        shares = torch.tensor([share for share, _, _ in _MIX])
        _, size, count = _MIX[int(torch.multinomial(shares, 1, generator=generator))]
        chosen = batch_indices(len(pools[size]), count, generator)
        pictures = normalise(pools[size][chosen]).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(pictures).latent_dist.mode()
        spread = _NOISE / SCALING * torch.rand(count, 1, 1, 1, generator=generator)
        noisy = latents + spread * torch.randn(latents.shape, generator=generator)
        difference = vae.decode(noisy).sample - pictures
        # Stands in for the divergence: without it louder latents would beat the noise.
        loudness = (latents * SCALING).square().mean()
        loss = sharp_loss(difference, edge_weight(pictures)) + 2e-3 * loudness
        psnr = 10 * torch.log10(4 / difference.detach().square().mean())
        return loss, {"psnr": psnr.item(), "loudness": loudness.item()}

    Trainer(plan, dict(vae.named_parameters()), work / "sharpen.ckpt").run(loss_of)
    return vae.to(memory_format=torch.contiguous_format).eval()
