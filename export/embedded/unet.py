"""The base UNet: SDXL's layout with text_time conditioning."""

import random
from pathlib import Path

import torch
from torch import Tensor

from export.embedded.captions import junk
from export.embedded.denoising import TIMESTEPS, Conditions, stratified_times, twin_loss
from export.embedded.images import Size
from export.embedded.networks import Unet, UNet2DConditionModel
from export.embedded.pool import Rows, draw_batch
from export.embedded.text import HIDDEN, TextEncoders
from export.embedded.training import Plan, Trainer

_TIME_WIDTH = 32  # numbers per entry of the time ids
_OFFSET = 0.05  # noise per channel and picture; lets the model move the mean colour


def build() -> Unet:
    """An untrained base UNet for 16x16 latents and other sizes."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 3),  # heads of 32; diffusers misnames the field
        transformer_layers_per_block=1,
        use_linear_projection=True,
        cross_attention_dim=2 * HIDDEN,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=HIDDEN + 6 * _TIME_WIDTH,
    )


def true_ids(size: Size, count: int) -> Tensor:
    """Original size, crop corner and target size, heights first: (count, 6)."""
    width, height = size
    row = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return row.repeat(count, 1)


def varied_ids(size: Size, count: int, generator: torch.Generator) -> Tensor:
    """Time ids of which a tenth claims another original size and crop.

    Requests that set these fields then do no harm.
    """
    result = true_ids(size, count)
    other = torch.rand(count, generator=generator) < 0.1
    result[other, :2] = torch.randint(64, 1025, (count, 2), generator=generator).float()[other]
    result[other, 2:4] = torch.randint(0, 65, (count, 2), generator=generator).float()[other]
    return result


class NullConditions:
    """The forms of "no prompt": zeros as in SDXL, the empty text, or words without meaning."""

    def __init__(self, encoders: TextEncoders, seed: int) -> None:
        rng = random.Random(seed + 21)
        self._hidden, self._pooled = encoders.embed(["", *(junk(rng) for _ in range(63))])

    def draw(self, ids: Tensor, generator: torch.Generator) -> Conditions:
        """Conditions for the given time ids: 60 % zeros, 20 % empty text, 20 % junk words."""
        count = len(ids)
        kind = torch.rand(count, generator=generator)
        row = torch.randint(1, len(self._hidden), (count,), generator=generator)
        row = torch.where(kind < 0.8, torch.zeros_like(row), row)
        keep = (kind >= 0.6).float()
        hidden = self._hidden[row] * keep.view(-1, 1, 1)
        return Conditions(hidden, self._pooled[row] * keep.view(-1, 1), ids)


def train(
    plan: Plan,
    work: Path,
    unet: Unet,
    rows: dict[Size, Rows],
    encoders: TextEncoders,
    null_every: int = 8,
) -> Unet:
    """Train a base UNet in place, on all sizes.

    One sample in ``null_every`` learns the null condition. The better it guesses a shape from the
    noisy picture alone, the less guidance exaggerates corners.
    """
    unet.train().to(memory_format=torch.channels_last)  # faster convolutions on a CPU
    nulls = NullConditions(encoders, plan.seed)

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(rows, generator)
        total = len(batch.latents)
        count = total - max(1, total // null_every)
        latents = batch.latents[:count]
        noise = torch.randn(latents.shape, generator=generator)
        noise = noise + _OFFSET * torch.randn(count, 4, 1, 1, generator=generator)
        times = stratified_times(count, TIMESTEPS, generator)
        ids = varied_ids(batch.size, count, generator)
        captioned = Conditions(batch.hidden[:count], batch.pooled[:count], ids)
        twins = torch.randperm(count, generator=generator)[: total - count]
        null = nulls.draw(ids[twins], generator)
        return twin_loss(unet, latents, noise, times, captioned, null, twins)

    Trainer(plan, dict(unet.named_parameters()), work / f"{plan.stage}.ckpt").run(loss_of)
    return unet.eval()
