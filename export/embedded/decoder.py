"""Fine-tunes the decoder alone, for sharp edges.

The encoder is not changed, so latents keep their meaning. UNet, refiner and LoRAs may therefore be
trained before, after, or at the same time.
"""

from pathlib import Path

import torch
from torch import Tensor

from export.embedded.images import BIG, SQUARE, TALL, WIDE, Size, mixed_pool, normalise
from export.embedded.networks import Vae
from export.embedded.pool import encode
from export.embedded.training import Plan, Trainer, batch_indices
from export.embedded.vae import SCALING, STYLE_WEIGHTS, edge_weight, sharp_loss
from export.likeness import psnr_of_error

_COUNTS: dict[Size, int] = {SQUARE: 1600, WIDE: 120, TALL: 120, BIG: 160}
_MIX: tuple[tuple[float, Size, int], ...] = (
    (0.74, SQUARE, 4),
    (0.06, WIDE, 3),
    (0.06, TALL, 3),
    (0.14, BIG, 1),
)
_NOISE = 0.16  # largest spread of the noise on the latents, whose own spread is 1


def _decoder_parameters(vae: Vae) -> dict[str, torch.nn.Parameter]:
    vae.requires_grad_(False)
    chosen = {
        name: parameter
        for name, parameter in vae.named_parameters()
        if name.startswith(("decoder.", "post_quant_conv."))
    }
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def train(plan: Plan, work: Path, vae: Vae) -> Vae:
    """Train the decoder of ``vae`` in place."""
    pools = {s: mixed_pool(n, s, plan.seed + 31, STYLE_WEIGHTS) for s, n in _COUNTS.items()}
    latents = {size: encode(vae, pool) for size, pool in pools.items()}
    vae.to(memory_format=torch.channels_last)
    parameters = _decoder_parameters(vae)

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        shares = torch.tensor([share for share, _, _ in _MIX])
        _, size, count = _MIX[int(torch.multinomial(shares, 1, generator=generator))]
        chosen = batch_indices(len(pools[size]), count, generator)
        pictures, codes = normalise(pools[size][chosen]), latents[size][chosen]
        # Noise on the latents teaches the decoder to draw a clean outline in spite of small errors
        # of the UNet.
        spread = _NOISE * torch.rand(count, 1, 1, 1, generator=generator)
        codes = codes + spread * torch.randn(codes.shape, generator=generator)
        codes = (codes / SCALING).contiguous(memory_format=torch.channels_last)
        difference = vae.decode(codes).sample - pictures
        loss = sharp_loss(difference, edge_weight(pictures))
        psnr = psnr_of_error(float(difference.detach().square().mean()), peak=2.0)
        return loss, {"psnr": psnr}

    Trainer(plan, parameters, work / f"{plan.stage}.ckpt").run(loss_of)
    return vae.requires_grad_(True).to(memory_format=torch.contiguous_format).eval()
