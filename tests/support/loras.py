"""A tiny SDXL of random weights, and LoRA files for it in every format that is around."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.original_names import original_name
from sdxl_bento.diffusion.lora.pool import LoraPool

ATTENTION = r"attn\d\.to_[qkv]$|attn\d\.to_out\.0$"
CONVOLUTIONS = r"resnets\.\d\.conv(1|2|_shortcut)$|samplers\.0\.conv$|conv_(in|out)$"
EVERYTHING = rf"{ATTENTION}|{CONVOLUTIONS}|proj_(in|out)$|ff\.net\.(0\.proj|2)$|time_emb_proj$"
CLIP = r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"

Tensors = dict[str, torch.Tensor]


def tiny_targets(seed: int = 0) -> dict[str, nn.Module]:
    """UNet (as many layers per block as SDXL's, which SGM names count) and two text encoders."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2),
            transformer_layers_per_block=(1, 1),
            norm_num_groups=8,
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )
        clip = CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=16,
            pad_token_id=0,
            bos_token_id=62,
            eos_token_id=63,
        )
        targets: dict[str, nn.Module] = {
            "unet": unet,
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": CLIPTextModelWithProjection(clip),
        }
    return {name: module.eval().requires_grad_(False) for name, module in targets.items()}


def unet_inputs(rows: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator).to(dtype)

    return {
        "sample": draw(4, 8, 8),
        "timestep": torch.linspace(10, 900, rows),
        "encoder_hidden_states": draw(7, 32),
        "added_cond_kwargs": {"text_embeds": draw(16), "time_ids": draw(6)},
    }


def random_factors(
    target: str, module: nn.Module, layers: str, ranks: Sequence[int] = (4,), seed: int = 0
) -> Tensors:
    """PEFT names → factors for the layers that match; layer i has rank `ranks[i % len]`."""
    generator = torch.Generator().manual_seed(seed)
    prefix = "text_encoder.text_model" if target == "text_encoder" else target
    tensors = {}
    matching = [(name, m) for name, m in module.named_modules() if re.search(layers, name)]
    for i, (name, layer) in enumerate(matching):
        rank = ranks[i % len(ranks)]
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)
        tensors[f"{prefix}.{name}.lora_A.weight"] = down / down[0].numel() ** 0.5
        tensors[f"{prefix}.{name}.lora_B.weight"] = up / rank
    assert tensors
    return tensors


def factors(
    targets: Mapping[str, nn.Module],
    unet: str = ATTENTION,
    clip: str = "",
    ranks: Sequence[int] = (4,),
    seed: int = 0,
) -> Tensors:
    tensors = random_factors("unet", targets["unet"], unet, ranks, seed) if unet else {}
    for target in ("text_encoder", "text_encoder_2") if clip else ():
        tensors |= random_factors(target, targets[target], clip, ranks, seed + 1)
    return tensors


def write_peft(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


def write_diffusers(path: Path, tensors: Tensors, configs: Mapping[str, Any] | None = None) -> Path:
    """By diffusers' own writer, text encoders in its own spelling as its training scripts do."""
    parts: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        target, _, rest = key.partition(".")
        parts.setdefault(target, {})[rest] = tensor
    layers = {
        f"{target}_lora_layers": part if target == "unet" else convert_state_dict_to_diffusers(part)
        for target, part in parts.items()
    }
    metadata = {f"{target}_lora_adapter_metadata": c for target, c in (configs or {}).items()}
    StableDiffusionXLPipeline.save_lora_weights(
        path.parent, weight_name=path.name, **layers, **metadata
    )
    return path


def write_processors(path: Path, tensors: Tensors) -> Path:
    """diffusers' first spelling, of attention processors, without a prefix."""
    old = {}
    for key, tensor in tensors.items():
        layer, way, _ = key.removeprefix("unet.").rsplit(".", 2)
        stem, _, which = layer.removesuffix(".0").rpartition(".")
        old[f"{stem}.processor.{which}_lora.{'down' if way == 'lora_A' else 'up'}.weight"] = tensor
    save_file(old, path)
    return path


def to_kohya(tensors: Tensors, alpha: float | None = None) -> Tensors:
    kohya: Tensors = convert_state_dict_to_kohya(dict(tensors))
    if alpha is not None:
        kohya |= {key: torch.tensor(alpha) for key in kohya if key.endswith(".alpha")}
    return kohya


def write_kohya(path: Path, tensors: Tensors, alpha: float | None = None) -> Path:
    save_file(to_kohya(tensors, alpha), path)
    return path


def write_sgm(path: Path, tensors: Tensors, alpha: float | None = None) -> Path:
    """kohya's format with the original block numbers, as most civitai SDXL files have it."""
    save_file({_sgm(key): tensor for key, tensor in to_kohya(tensors, alpha).items()}, path)
    return path


def _sgm(key: str) -> str:
    def down(m: re.Match[str]) -> str:
        kind = {"resnets": 0, "attentions": 1}[m[2]]
        return f"input_blocks_{3 * int(m[1]) + int(m[3]) + 1}_{kind}_"

    def up(m: re.Match[str]) -> str:
        kind = {"resnets": 0, "attentions": 1}[m[2]]
        return f"output_blocks_{3 * int(m[1]) + int(m[3])}_{kind}_"

    key = re.sub(r"down_blocks_(\d)_(resnets|attentions)_(\d)_", down, key)
    key = re.sub(r"up_blocks_(\d)_(resnets|attentions)_(\d)_", up, key)
    key = re.sub(
        r"down_blocks_(\d)_downsamplers_0_conv",
        lambda m: f"input_blocks_{3 * int(m[1]) + 3}_0_op",
        key,
    )
    key = re.sub(
        r"up_blocks_(\d)_upsamplers_0_conv",
        lambda m: f"output_blocks_{3 * int(m[1]) + 2}_2_conv",
        key,
    )
    for name, sgm in {
        "mid_block_resnets_0": "middle_block_0",
        "mid_block_attentions_0": "middle_block_1",
        "mid_block_resnets_1": "middle_block_2",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
    }.items():
        key = key.replace(name, sgm)
    if "_blocks_" in key or "middle_block" in key:
        key = re.sub(r"(_\d_0|block_[02])_conv1", r"\1_in_layers_2", key)
        key = re.sub(r"(_\d_0|block_[02])_conv2", r"\1_out_layers_3", key)
    return key


def _forms() -> dict[str, Callable[[str, str, str, str], str]]:
    """Name of a form → a tensor's name, from the target, diffusers' and the original name of the
    layer, and "A" or "B". The original name of a text encoder's layer is transformers'."""
    way = {"A": "down", "B": "up"}
    kohya = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
    comfy = {
        "unet": "diffusion_model",
        "text_encoder": "text_encoders.clip_l.transformer",
        "text_encoder_2": "text_encoders.clip_g.transformer",
    }
    trainer = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"}

    def flat(name: str) -> str:
        return name.replace(".", "_")

    return {
        "diffusers, dotted": lambda t, d, o, p: f"{t}.{d}.lora_{way[p]}.weight",
        "diffusers, older": lambda t, d, o, p: f"{t}.{d}.lora.{way[p]}.weight",
        "diffusers, linear": lambda t, d, o, p: f"{t}.{d}.lora_linear_layer.{way[p]}.weight",
        "kohya": lambda t, d, o, p: f"lora_{kohya[t]}_{flat(d)}.lora_{way[p]}.weight",
        "kohya, original": lambda t, d, o, p: f"lora_{kohya[t]}_{flat(o)}.lora_{way[p]}.weight",
        "kohya, compiled": lambda t, d, o, p: (
            f"lora_{kohya[t]}__orig_mod_{flat(o)}.lora_{way[p]}.weight"
        ),
        "ComfyUI": lambda t, d, o, p: f"{comfy[t]}.{o}.lora_{way[p]}.weight",
        "ComfyUI, model": lambda t, d, o, p: (
            f"{'model.' if t == 'unet' else ''}{comfy[t]}.{o}.lora_{p}.weight"
        ),
        "OneTrainer": lambda t, d, o, p: f"{trainer[t]}.{o}.lora_{way[p]}.weight",
        "LyCORIS": lambda t, d, o, p: f"lycoris_{flat(d)}.lora_{way[p]}.weight",
        "PEFT": lambda t, d, o, p: f"base_model.model.{d}.lora_{p}.weight",
        "PEFT, named": lambda t, d, o, p: f"{t}.base_model.model.{d}.lora_{p}.default.weight",
        "PEFT, compiled": lambda t, d, o, p: f"{t}._orig_mod.{d}.lora_{p}.weight",
        "no prefix": lambda t, d, o, p: f"{d}.lora_{p}",
    }


FORMS = _forms()
UNET_FORMS = ("LyCORIS", "PEFT", "no prefix")  # which say nothing of the target


def renamed(tensors: Tensors, form: str, layers_per_block: int = 2) -> Tensors:
    """The same LoRA as another program names it, with an alpha of 2 for each layer."""
    other: Tensors = {}
    attentions = {key.split(".")[2] for key in tensors if key.startswith("unet.up_blocks.")
                  and ".attentions." in key}  # fmt: skip
    for key, tensor in tensors.items():
        target, _, rest = key.partition(".")
        layer, part = rest.removesuffix(".weight").rsplit(".lora_", 1)
        original = layer
        if target == "unet":
            original = original_name(layer, layers_per_block, attentions.__contains__)
        name = FORMS[form](target, layer, original, part)
        other[name] = tensor
        stem = re.sub(
            r"[._]lora(_linear_layer)?[._](A|B|down|up)(\.default)?(\.weight)?$", "", name
        )
        other[f"{stem}.alpha"] = torch.tensor(2.0)
    return other


def pool_of(targets: Mapping[str, nn.Module], **files: Path) -> LoraPool:
    """A pool with all of the files loaded."""
    pool = LoraPool(targets, budget_bytes=1 << 30, on_loaded=lambda: None)
    for name, path in files.items():
        pool.register(name, path)
    wait_ready(pool, files)
    pool.use(files)
    return pool


def wait_ready(pool: LoraPool, names: Sequence[str] | Mapping[str, Any], limit: float = 20) -> None:
    deadline = time.monotonic() + limit
    while not pool.ready(names):
        assert time.monotonic() < deadline, "not loaded in time"
        time.sleep(0.002)


def diffusers_with(
    targets: Mapping[str, nn.Module], files: Mapping[str, Path], scales: Mapping[str, float]
) -> dict[str, nn.Module]:
    """Copies of the targets to which diffusers itself has added the adapters."""
    copies = {name: deepcopy(module) for name, module in targets.items()}
    pipeline = StableDiffusionXLPipeline(
        vae=None, tokenizer=None, tokenizer_2=None, scheduler=EulerDiscreteScheduler(), **copies
    )
    for name, path in files.items():
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    pipeline.set_adapters(list(scales), list(scales.values()))
    return copies


@torch.no_grad()
def unet_output(
    unet: nn.Module, inputs: Mapping[str, Any], pool: LoraPool | None = None, rows: Any = ()
) -> torch.Tensor:
    if pool is None:
        return unet(**inputs).sample
    with pool.applied("unet", rows):
        return unet(**inputs).sample


def mix(**scales: float) -> Mix:
    return tuple(sorted(scales.items()))
