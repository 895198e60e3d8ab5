"""A UNet of SDXL's form that is traced in seconds, and its graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.compile.options import CompileOptions
from export.model.graphs import Graph, unet_graph

CPU = torch.device("cpu")
CELLS = 4


def small_unet() -> Any:
    """Two levels of eight and sixteen channels, one transformer block; the same each time."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=CELLS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            attention_head_dim=(1, 2),
            layers_per_block=1,
            transformer_layers_per_block=1,
            cross_attention_dim=12,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32,
        )
        .eval()
        .requires_grad_(False)
    )


def small_graph(*, slots: bool = False) -> Graph:
    return unet_graph("base", small_unet(), CELLS, slots=slots)


def compile_options(folder: Path, **changes: Any) -> CompileOptions:
    """Options for the CPU in float32, with the UNet's weights written into `folder`."""
    weights = folder / "unet"
    weights.mkdir(exist_ok=True)
    save_file(small_unet().state_dict(), weights / "diffusion_pytorch_model.safetensors")
    defaults: dict[str, Any] = {"device": CPU, "dtype": "fp32", "vae_dtype": "fp32"}
    return CompileOptions(**defaults | {"weights": weights} | changes)
