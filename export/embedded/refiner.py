"""The refiner's UNet: SDXL's second model, for the last fifth of the noise only.

It reads the second text encoder alone and five time ids, the last of which is an aesthetic score.
"""

from pathlib import Path

import torch
from torch import Tensor

from export.embedded.denoising import Conditions, stratified_times, twin_loss
from export.embedded.images import Size
from export.embedded.networks import Unet, UNet2DConditionModel
from export.embedded.pool import Rows, draw_batch
from export.embedded.text import HIDDEN, TextEncoders
from export.embedded.training import Plan, Trainer

_TIME_WIDTH = 32
_LIMIT = 250  # timesteps; a base run that stops at 0.8 hands over at 200
_GOOD, _POOR = 6.0, 2.5  # diffusers' default aesthetic scores with and without the prompt
_NULLS = 6  # one sample in this many is trained on the null condition ...
_ZEROS = 0.25  # ... of which this share has zeros in place of the empty text


def build() -> Unet:
    """An untrained refiner UNet."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 48, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=(
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 2, 2),
        transformer_layers_per_block=1,
        use_linear_projection=True,
        cross_attention_dim=HIDDEN,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=HIDDEN + 5 * _TIME_WIDTH,
    )


def time_ids(size: Size, count: int, score: float) -> Tensor:
    """Original size, crop corner and aesthetic score, height first: (count, 5)."""
    width, height = size
    return torch.tensor([height, width, 0, 0, score]).repeat(count, 1)


def train(plan: Plan, work: Path, rows: dict[Size, Rows], encoders: TextEncoders) -> Unet:
    """Train the refiner on all sizes."""
    torch.manual_seed(plan.seed + 3)
    unet = build().to(memory_format=torch.channels_last)
    states, summary = encoders.embed([""])
    empty_hidden, empty_pooled = states[..., HIDDEN:], summary

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(rows, generator)
        total = len(batch.latents)
        count = total - max(1, total // _NULLS)
        latents, hidden = batch.latents[:count], batch.hidden[:count, :, HIDDEN:]
        captioned = Conditions(hidden, batch.pooled[:count], time_ids(batch.size, count, _GOOD))
        twins = torch.randperm(count, generator=generator)[: total - count]
        # SDXL's refiner has force_zeros_for_empty_prompt off, so it encodes the empty text.
        keep = (torch.rand(len(twins), generator=generator) >= _ZEROS).float()
        null = Conditions(
            empty_hidden * keep.view(-1, 1, 1),
            empty_pooled * keep.view(-1, 1),
            time_ids(batch.size, len(twins), _POOR),
        )
        times = stratified_times(count, _LIMIT, generator)
        noise = torch.randn(latents.shape, generator=generator)
        return twin_loss(unet, latents, noise, times, captioned, null, twins)

    Trainer(plan, dict(unet.named_parameters()), work / "refiner.ckpt").run(loss_of)
    return unet.eval()
