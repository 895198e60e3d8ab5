"""SDXL base at full size with random weights, made on the device: 2.6 billion parameters of UNet.

The configs are those that the model was published with (arXiv 2307.01952, table 1). Weights are
drawn so that activations stay in float16's range: normal with a spread of `GAIN / sqrt(fan in)`,
biases zero, norms one. What the pictures show does not matter to how long they take. A tiny
sibling of the same architecture lets the same code run on a CPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.diffusion.conditioning import Conditioner, PromptCache
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.model import Model, Pipeline, Placement
from sdxl_bento.diffusion.plan import ModelFacts
from sdxl_bento.diffusion.runner import Served
from sdxl_bento.dtypes import dtype_of
from sdxl_bento.manifest import (
    BackendInfo,
    Manifest,
    PipelineInfo,
    SizeLimits,
    SourceInfo,
    Versions,
)

GAIN = 0.6
MIB = 1024 * 1024
NAME = "random-sdxl"
BOS, EOS, WORDS = 49406, 49407, 49406

UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Mapping[str, Any] = {
    "sample_size": 1024,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_BIG_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER: Mapping[str, object] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


@dataclass(frozen=True)
class Sizes:
    """The four networks' configs."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    clip: Mapping[str, Any]
    clip_2: Mapping[str, Any]


SDXL = Sizes(UNET, VAE, CLIP_L, CLIP_BIG_G)
_TINY_CLIP = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = Sizes(
    unet={
        **UNET,
        "sample_size": 8,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 1),
        "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
    vae={**VAE, "sample_size": 64, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    clip={**CLIP_L, **_TINY_CLIP, "hidden_size": 32, "projection_dim": 32},
    clip_2={**CLIP_BIG_G, **_TINY_CLIP, "hidden_size": 32, "projection_dim": 32},
)


class WordTokenizer:
    """Stands in for CLIP's: a token for each word, by its hash. Called as transformers' are."""

    model_max_length = 77

    def __call__(self, prompts: list[str], **_: Any) -> Any:
        ids = torch.full((len(prompts), self.model_max_length), EOS)
        ids[:, 0] = BOS
        for row, prompt in zip(ids, prompts, strict=True):
            words = [zlib.crc32(word.encode()) % WORDS for word in prompt.split()[:75]]
            row[1 : len(words) + 1] = torch.tensor(words)
        return type("Encoding", (), {"input_ids": ids})


def serve(placement: Placement, sizes: Sizes) -> tuple[Served, ModelFacts]:
    """The random model, ready for a `Runner`, and what planning needs to know of it."""
    base = _pipeline(placement, sizes)
    manifest = _manifest(base.info, placement.dtype)
    model = Model(NAME, f"{NAME}:1", Path("nowhere"), manifest, placement, base)
    targets = {"unet": base.unet}
    adapters = LoraPool(targets, budget_bytes=MIB, on_loaded=lambda: None)
    served = Served(
        model=model,
        backend=EagerBackend(model, adapters, tile_pixels=1536 * 1536),
        adapters=adapters,
        conditioner=Conditioner(model, adapters, PromptCache(64 * MIB)),
    )
    return served, ModelFacts(NAME, manifest, SCHEDULER, None)


def _pipeline(placement: Placement, sizes: Sizes) -> Pipeline:
    import diffusers
    import transformers

    unet: Any = diffusers.UNet2DConditionModel
    vae: Any = diffusers.AutoencoderKL
    clip: Any = transformers.CLIPTextModel
    clip_2: Any = transformers.CLIPTextModelWithProjection
    config: Any = transformers.CLIPTextConfig
    device, dtype = placement.device, placement.dtype
    generator = torch.Generator(device).manual_seed(0)
    words = {"vocab_size": WORDS + 2, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}

    def built(make: Any, dtype: torch.dtype) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                module = make()
        finally:
            torch.set_default_dtype(before)
        return _filled(module.to_empty(device=device), generator).eval()

    vae_dtype = torch.float32 if dtype is torch.float16 else dtype  # it overflows in float16
    size = sizes.vae["sample_size"]
    return Pipeline(
        unet=built(lambda: unet(**sizes.unet), dtype),
        vae=built(lambda: vae(**sizes.vae), vae_dtype),
        tokenizers=[WordTokenizer(), WordTokenizer()],
        text_encoders=[
            built(lambda: clip(config(**sizes.clip, **words)), dtype),
            built(lambda: clip_2(config(**sizes.clip_2, **words)), dtype),
        ],
        scheduler_config=SCHEDULER,
        info=PipelineInfo(
            path="base",
            components={},
            prediction_type="epsilon",
            width=size,
            height=size,
            latent_channels=4,
            vae_scale_factor=8,
            requires_aesthetics_score=False,
            force_zeros_for_empty_prompt=True,
        ),
    )


@torch.no_grad()
def _filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights in place of those that `to_empty` left unset, in a steady range."""
    for name, buffer in module.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"no rule for the buffer {name}")
        buffer.copy_(torch.arange(buffer.shape[-1], device=buffer.device).expand(buffer.shape))
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if name == "bias":
                weight.zero_()
            elif weight.dim() < 2:  # a norm's
                weight.fill_(1.0)
            else:
                fan_in = weight[0].numel() if not isinstance(part, nn.Embedding) else 2500
                weight.normal_(0.0, GAIN / fan_in**0.5, generator=generator)
    return module.requires_grad_(False)


def _manifest(base: PipelineInfo, dtype: torch.dtype) -> Manifest:
    unknown = dict.fromkeys(("sdxl_bento", "python", "torch", "diffusers"), "-")
    return Manifest(
        name=NAME,
        source=SourceInfo(kind="folder", location="random weights", sha256="0" * 64),
        created=datetime.now(UTC),
        versions=Versions(**unknown, transformers="-", bentoml="-"),
        dtype=dtype_of(dtype),
        base=base,
        backends=(BackendInfo(backend="eager", device="any", versions={}),),
        size_limits=SizeLimits(multiple=8, min=64, max=2048),
        bytes=0,
        export_seconds=0.0,
    )
