"""The autoencoder: 8 times smaller latents with 4 channels, trained before anything uses them."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from export.embedded.images import BIG, SQUARE, TALL, WIDE, Size, mixed_pool, normalise
from export.embedded.networks import AutoencoderKL, Vae
from export.embedded.training import Plan, Trainer, batch_indices
from export.likeness import psnr_of_error

SCALING = 0.13025  # SDXL's own factor; the latents' true spread is folded into the weights
STYLE_WEIGHTS = (70, 15, 15)  # the LoRA styles must decode well too
_ANCHOR_UNTIL = 0.3  # share of the run in which latents are pulled towards small pictures
_WHOLE_FROM = 0.8  # share of the run after which whole pictures take the place of crops
_CROP = 64


def build(widths: tuple[int, int, int, int] = (16, 32, 64, 64)) -> Vae:
    """An untrained SDXL-type autoencoder."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=128,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=2,  # wide groups keep the channels' relative strength, hence flat colours
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    with torch.no_grad():  # starts with a small posterior variance, so the mean carries the picture
        vae.quant_conv.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = -6.0
    return vae


def edge_weight(pictures: Tensor, gain: float = 5.0) -> Tensor:
    """Weights (n, 1, h, w) of mean 1 that are higher within 2 pixels of an edge."""
    steps = torch.zeros_like(pictures[:, :1])
    steps[..., 1:] += (pictures[..., 1:] - pictures[..., :-1]).abs().sum(1, keepdim=True)
    steps[:, :, 1:] += (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().sum(1, keepdim=True)
    weight = 1 + gain * F.max_pool2d((steps > 0.25).float(), 5, 1, 2)
    return weight / weight.mean()


def gradient_loss(difference: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute change of the error from pixel to pixel, both ways."""
    across = ((difference[..., 1:] - difference[..., :-1]).abs() * weight[..., 1:]).mean()
    down = ((difference[:, :, 1:] - difference[:, :, :-1]).abs() * weight[:, :, 1:]).mean()
    return across + down


def sharp_loss(difference: Tensor, weight: Tensor) -> Tensor:
    """A loss that, by a power below 1, prefers one clear edge to the mean of several."""
    power = (weight * (difference.abs() + 0.02) ** 0.7).mean()
    square = (weight * difference.square()).mean()
    return power + 0.5 * square + 0.5 * gradient_loss(difference, weight)


def _crop(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The same random window of every picture, at a multiple of 8 pixels."""
    tops = torch.randint(0, (pictures.shape[2] - _CROP) // 8 + 1, (1,), generator=generator)
    lefts = torch.randint(0, (pictures.shape[3] - _CROP) // 8 + 1, (1,), generator=generator)
    top, left = int(tops) * 8, int(lefts) * 8
    return pictures[:, :, top : top + _CROP, left : left + _CROP]


class _Batches:
    """Crops of 64x64 at first, whole pictures of all sizes at the end, at equal cost per step."""

    def __init__(self, seed: int) -> None:
        counts: dict[Size, int] = {SQUARE: 3000, WIDE: 300, TALL: 300, BIG: 400}
        self._pools = {
            size: mixed_pool(count, size, seed + 11, STYLE_WEIGHTS)
            for size, count in counts.items()
        }

    def __call__(self, progress: float, generator: torch.Generator) -> Tensor:
        draw = float(torch.rand(1, generator=generator))
        if progress < _WHOLE_FROM:
            size, count = (SQUARE, 12) if draw < 0.8 else (BIG, 12)
        elif draw < 0.6:
            size, count = SQUARE, 4
        elif draw < 0.8:
            size, count = (WIDE if draw < 0.7 else TALL), 3
        else:
            size, count = BIG, 1
        pool = self._pools[size]
        pictures = normalise(pool[batch_indices(len(pool), count, generator)])
        return _crop(pictures, generator) if progress < _WHOLE_FROM else pictures


def train(plan: Plan, work: Path) -> Vae:
    """Train encoder and decoder together."""
    torch.manual_seed(plan.seed)
    vae, batches = build(), _Batches(plan.seed)
    vae.to(memory_format=torch.channels_last)  # a tenth faster on a CPU

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        progress = step / plan.steps
        pictures = batches(progress, generator).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.sample(generator)
        # Noise makes the encoder separate different colours widely, so that small errors of the
        # UNet change little.
        spread = 0.1 * torch.rand(len(latents), 1, 1, 1, generator=generator) * min(1, 3 * progress)
        noise = torch.randn(latents.shape, generator=generator) * latents.detach().std()
        difference = vae.decode(latents + spread * noise).sample - pictures
        weight = edge_weight(pictures, 2.0)
        square = (weight * difference.square()).mean()
        loss = (weight * difference.abs()).mean() + 2 * square
        loss = loss + 0.5 * gradient_loss(difference, weight)
        # Divided by the pixels of a latent cell's 4x4 share, so that the weight reads per number.
        divergence = posterior.kl().mean() * 16 / pictures[0, 0].numel()
        loss = loss + 3e-5 * divergence
        if progress < _ANCHOR_UNTIL:
            small = F.avg_pool2d(pictures, 8)
            pull = 4 * (1 - progress / _ANCHOR_UNTIL)
            loss = loss + pull * (posterior.mode()[:, :3] - small).square().mean()
        psnr = psnr_of_error(float(difference.detach().square().mean()), peak=2.0)
        return loss, {"psnr": psnr, "kl": divergence.item()}

    Trainer(plan, dict(vae.named_parameters()), work / "vae.ckpt").run(loss_of)
    return vae.eval()


@torch.no_grad()
def fold_statistics(vae: Vae, seed: int, pictures: int = 512) -> None:
    """Give every latent channel mean 0 and spread 1 / SCALING by changing the 1x1 convolutions."""
    pool = mixed_pool(pictures, SQUARE, seed + 12, (1, 0, 0))
    latents = torch.cat(
        [vae.encode(normalise(chunk)).latent_dist.mode() for chunk in torch.split(pool, 16)]
    )
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (spread * SCALING)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()  # the posterior's log variance grows with its scale
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain.view(1, 4, 1, 1)
    vae.register_to_config(scaling_factor=SCALING)
