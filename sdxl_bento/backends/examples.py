"""Random inputs of the networks, equal for equal shapes: to trace, to verify and to probe parts."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from sdxl_bento.backends.slots import RANK_STEP, SlotLayout
from sdxl_bento.layout import TIME_IDS
from sdxl_bento.manifest import Role

ADAPTER_STRENGTH: Final = 0.1  # of the example's adapters


def draw_example(
    role: Role, config: Any, rows: int, height: int, width: int
) -> dict[str, torch.Tensor]:
    """Inputs of a UNet in float32 on the CPU, from its config; `height` and `width` in cells."""
    random = torch.Generator().manual_seed(rows * 1_000_003 + height * 1009 + width)
    cross = config.cross_attention_dim
    context = cross[0] if isinstance(cross, list | tuple) else cross
    native = float(config.sample_size * 8)
    ids = [native, native, 0.0, 0.0, native, native]
    if TIME_IDS[role] == 5:
        ids = [native, native, 0.0, 0.0, 6.0]
    pooled = (
        config.projection_class_embeddings_input_dim - len(ids) * config.addition_time_embed_dim
    )

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=random)

    return {
        "sample": draw(config.in_channels, height, width),
        "timestep": torch.linspace(951.0, 51.0, rows),
        "encoder_hidden_states": draw(77, context),
        "text_embeds": draw(pooled),
        "time_ids": torch.tensor([ids] * rows),
    }


def slot_example(
    layout: SlotLayout, rows: int, like: torch.Tensor, slots: int = 3
) -> dict[str, torch.Tensor]:
    """Random adapters for the rows of a UNet, in the dtype and on the device of `like`.

    The first slot holds zeros, as that of rows without adapters; the first row has the second slot,
    and so on. What an adapter adds to a layer is about `ADAPTER_STRENGTH` times the layer's input:
    much more, and numbers would leave the ranges for which static quantization was calibrated.
    """
    rank = RANK_STEP
    random = torch.Generator().manual_seed(0)
    down = torch.randn(slots, rank, layout.width_down, generator=random)
    up = torch.randn(slots, rank, layout.width_up, generator=random)
    for columns in layout.columns.values():
        down[:, :, columns.down] /= math.sqrt(columns.down.stop - columns.down.start)
    up *= ADAPTER_STRENGTH / math.sqrt(rank)
    down[0], up[0] = 0, 0
    return {
        "slot": ((torch.arange(rows) + 1) % slots).to(like.device),
        "down": down.to(like),
        "up": up.to(like),
    }


def latents_example(channels: int, rows: int, height: int, width: int) -> torch.Tensor:
    """Latents [rows, channels, height, width] of a decoder, in float32 on the CPU."""
    random = torch.Generator().manual_seed(height * 1009 + width)
    return torch.randn(rows, channels, height, width, generator=random)
