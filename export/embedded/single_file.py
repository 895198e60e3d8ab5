"""Packs the base folder into one checkpoint file in SDXL's original layout.

``python -m export.embedded.single_file OUTPUT`` writes it. The layout is the one in which SDXL was
published and in which most checkpoints are shared: ``model.diffusion_model.*`` for the UNet,
``first_stage_model.*`` for the autoencoder, ``conditioner.embedders.0.transformer.*`` for the first
text encoder, ``conditioner.embedders.1.model.*`` (open_clip's names) for the second.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.embedded import WEIGHTS
from sdxl_bento.diffusion.lora.original_names import original_name, swap_prefix

Weights = dict[str, Tensor]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def pack_unet(weights: Weights, layers: int) -> Weights:
    """UNet weights under their original names."""

    def has_attention(block: str) -> bool:
        return any(name.startswith(f"up_blocks.{block}.attentions.") for name in weights)

    return {UNET + original_name(name, layers, has_attention): v for name, v in weights.items()}


def vae_name(name: str, levels: int) -> str:
    """Original name of an autoencoder weight; the original counts the decoder's levels upwards."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    match = re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    if match is not None:
        half, kind, index, rest = match.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{int(index) + 1}.{rest}"
        return f"{half}.mid.attn_1.{swap_prefix(rest, _VAE_ATTENTION)}"
    match = re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    if match is None:
        return name
    half, way, block, kind, index, rest = match.groups()
    level = int(block) if way == "down" else levels - 1 - int(block)
    if kind == "resnets":
        return f"{half}.{way}.{level}.block.{index}.{rest}"
    return f"{half}.{way}.{level}.{kind.removesuffix('rs')}.{rest}"


def pack_vae(weights: Weights, levels: int) -> Weights:
    """Autoencoder weights under their original names; its attention is made of 1x1 convolutions."""
    result = {}
    for name, value in weights.items():
        is_matrix = ".attentions." in name and value.ndim == 2
        result[VAE + vae_name(name, levels)] = value[..., None, None] if is_matrix else value
    return result


def pack_first(weights: Weights) -> Weights:
    """The first text encoder keeps its names; newer files lack the ``text_model`` level."""
    return {f"{FIRST}text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}


def pack_second(weights: Weights) -> Weights:
    """The second text encoder as open_clip names it: query, key and value in one matrix."""
    result = {}
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()}
    for name, value in plain.items():
        if name in _OPEN_CLIP_TOP:
            result[SECOND + _OPEN_CLIP_TOP[name]] = value
        elif name == "text_projection.weight":
            result[SECOND + "text_projection"] = value.T
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)", name):
            block = f"{SECOND}transformer.resblocks.{match[1]}."
            if match[2].startswith("self_attn.q_proj."):
                kind = match[2].rsplit(".", 1)[1]
                parts = [plain[name.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"]
                result[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            elif not re.match(r"self_attn\.[kv]_proj\.", match[2]):
                result[block + swap_prefix(match[2], _OPEN_CLIP_LAYER)] = value
    return result


def _part(folder: Path, name: str) -> tuple[Weights, dict[str, object]]:
    """Weights and configuration of one component."""
    (path,) = (folder / name).glob("*.safetensors")
    return load_file(path), json.loads((folder / name / "config.json").read_text())


def pack(folder: Path) -> Weights:
    """All weights of a base pipeline folder under their original names."""
    unet, unet_config = _part(folder, "unet")
    vae, vae_config = _part(folder, "vae")
    levels = vae_config["block_out_channels"]
    layers = unet_config["layers_per_block"]
    if not isinstance(layers, int) or not isinstance(levels, list):
        raise ValueError(f"{folder} has a layout that this packer does not know")
    return {
        **pack_unet(unet, layers),
        **pack_vae(vae, len(levels)),
        **pack_first(_part(folder, "text_encoder")[0]),
        **pack_second(_part(folder, "text_encoder_2")[0]),
    }


def write(folder: Path, path: Path) -> None:
    """Write the checkpoint of the pipeline in ``folder`` to ``path``."""
    weights = {name: value.contiguous() for name, value in pack(folder).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m export.embedded.single_file", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--base", type=Path, default=WEIGHTS / "base", help="pipeline folder")
    options = parser.parse_args(arguments)
    write(options.base, options.output)


if __name__ == "__main__":
    main()
