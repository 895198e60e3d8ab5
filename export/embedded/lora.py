"""Two style adapters (LoRA) for the base UNet, each saved in one of the two common key styles."""

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from export.embedded.denoising import TIMESTEPS, Conditions, stratified_times, twin_loss
from export.embedded.images import BIG, SQUARE, WIDE, Size
from export.embedded.networks import Unet, Vae
from export.embedded.pool import Rows, draw, draw_batch, encode
from export.embedded.text import TextEncoders
from export.embedded.training import Plan, Trainer
from export.embedded.unet import NullConditions, true_ids

RANK = 8
_ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
)
_CONVOLUTION = ("conv1", "conv2")
TARGETS: dict[str, tuple[str, ...]] = {
    "striped": _ATTENTION + _CONVOLUTION,
    "outlined": _ATTENTION + _CONVOLUTION,
}
_COUNTS: dict[Size, int] = {SQUARE: 900, WIDE: 60, BIG: 60}
_MIX: tuple[tuple[float, Size, int], ...] = (
    (0.84, SQUARE, 20),
    (0.08, WIDE, 13),
    (0.08, BIG, 5),
)
_NULLS = 8  # one sample in this many is trained on the null condition


def draw_style(encoders: TextEncoders, vae: Vae, style: str, seed: int) -> dict[Size, Rows]:
    """Latents of pictures in the style, which two captions in three name."""

    def rename(text: str, rng: random.Random) -> str:
        return text + rng.choice(("", f", {style} style", f", {style}"))

    result = {}
    for size, count in _COUNTS.items():
        rows = draw(encoders, size, count, f"{seed}/{style}", style, rename)
        result[size] = Rows(encode(vae, rows.pictures), rows.hidden, rows.pooled)
    return result


def train(
    plan: Plan,
    work: Path,
    unet: Unet,
    rows: dict[Size, Rows],
    encoders: TextEncoders,
    style: str,
) -> dict[str, Tensor]:
    """Train one adapter; returns its weights with PEFT's names. ``unet`` keeps the adapter."""
    torch.manual_seed(plan.seed + 4)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=list(TARGETS[style]),
            init_lora_weights="gaussian",
        )
    )
    nulls = NullConditions(encoders, plan.seed)

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(rows, generator, _MIX)
        total = len(batch.latents)
        count = total - max(1, total // _NULLS)
        ids = true_ids(batch.size, count)
        captioned = Conditions(batch.hidden[:count], batch.pooled[:count], ids)
        # Without a prompt the style must show too; otherwise guidance would exaggerate it.
        twins = torch.randperm(count, generator=generator)[: total - count]
        null = nulls.draw(ids[twins], generator)
        times = stratified_times(count, TIMESTEPS, generator)
        latents = batch.latents[:count]
        noise = torch.randn(latents.shape, generator=generator)
        return twin_loss(unet, latents, noise, times, captioned, null, twins)

    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    Trainer(plan, trained, work / f"{plan.stage}.ckpt").run(loss_of)
    return {name: value.detach() for name, value in get_peft_model_state_dict(unet).items()}


def peft_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that diffusers itself writes: ``unet.<module>.lora_A.weight``."""
    return {f"unet.{name}": value for name, value in weights.items()}


def kohya_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that most shared LoRA files have: ``lora_unet_<module>.lora_down.weight``."""
    sides = {"lora_A": "lora_down", "lora_B": "lora_up"}
    result = {}
    for name, value in weights.items():
        module, side, _ = name.rsplit(".", 2)
        stem = "lora_unet_" + module.replace(".", "_")
        result[f"{stem}.{sides[side]}.weight"] = value
        result[f"{stem}.alpha"] = torch.tensor(float(RANK))
    return result


KEYS = {"striped": peft_keys, "outlined": kohya_keys}
"""The key style of each shipped file."""


def save(weights: Mapping[str, Tensor], style: str, folder: Path) -> Path:
    """Write ``<folder>/<style>.safetensors`` in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{style}.safetensors"
    named = KEYS[style](weights)
    save_file({name: value.half().contiguous() for name, value in named.items()}, path)
    return path
