"""The names inside a LoRA file: which layer of which target each tensor belongs to.

Renaming is left to diffusers and PEFT, whose converters know the formats that are around:

- PEFT / diffusers: `unet.<layer>.lora_A.weight`
- older diffusers: `unet.<layer>.lora.down.weight`, `<layer>.processor.to_q_lora.down.weight`,
  `text_encoder.<layer>.lora_linear_layer.down.weight`
- kohya / civitai: `lora_unet_<layer>.lora_down.weight` with `.alpha`, layers named as in diffusers
  or as in the original SGM code (`input_blocks_4_1_…`)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdxl_bento.errors import AdapterMismatch

TARGETS = ("unet", "text_encoder", "text_encoder_2")
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
SGM = ("input_blocks", "middle_block", "output_blocks")
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"

# A plain LoRA holds tensors with these endings and no others.
_PLAIN = (
    *(f"{join}{way}.weight" for join in (".lora_", ".lora.", "_lora.") for way in ("down", "up")),
    *(f".lora_linear_layer.{way}.weight" for way in ("down", "up")),
    DOWN,
    UP,
    ALPHA,
)
# What else is called a LoRA, by what gives it away in the names of its tensors.
_OTHER_KINDS = {
    "hada_": "it is a LoHa",
    "lokr_": "it is a LoKr",
    "dora_scale": "it is a DoRA",
    "lora_magnitude_vector": "it is a DoRA",
    "oft_": "it is an OFT adapter",
    "lora_mid": "it is a LoCon with a third factor",
    "lora_embedding": "it changes an embedding table",
    ".diff": "it holds full weight differences",
    "lora_B.bias": "it changes biases",
    "bundle_emb": "it carries a textual inversion",
}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """The two factors of one layer as the file has them.

    Attributes:
        down: [r, in] or [r, in, kh, kw].
        up: [out, r] or [out, r, 1, 1].
        scaling: alpha / r, which multiplies `up @ down`.
        keys: the two names in the file, for messages.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    keys: tuple[str, str]


def pairs_by_target(
    name: str, tensors: Tensors, metadata: Mapping[str, str], unet_config: object
) -> dict[str, dict[str, Pair]]:
    """Sort a file's tensors by target and layer.

    Args:
        name: of the adapter, for messages.
        tensors: everything in the file.
        metadata: the safetensors header's `__metadata__`.
        unet_config: config of the UNet, which numbers the blocks of SGM names.

    Returns:
        target → layer (its module name in diffusers' or transformers' model) → factors.

    Raises:
        AdapterMismatch: tensors of another kind of adapter, half a pair, unknown names.
    """
    _refuse_other_kinds(name, tensors)
    origin = {id(tensor): key for key, tensor in tensors.items()}
    renamed, alphas = _rename(name, tensors, unet_config)
    config = json.loads(metadata.get("lora_adapter_metadata", "null")) or {}

    pairs: dict[str, dict[str, Pair]] = {}
    strangers: list[str] = []
    for key, down, up in _couples(renamed):
        target, _, layer = key.partition(".")
        keys = tuple(origin[id(t)] for t in (down, up) if t is not None)
        if down is None or up is None or target not in TARGETS:
            strangers += keys
            continue
        scaling = _scaling(target, layer, down.shape[0], alphas.get(key), config)
        pairs.setdefault(target, {})[layer] = Pair(down, up, scaling, (keys[0], keys[1]))
    if strangers:
        raise AdapterMismatch(name, strangers, "tensors that belong to no layer, or half a pair")
    return pairs


def _refuse_other_kinds(name: str, tensors: Tensors) -> None:
    if not tensors:
        raise AdapterMismatch(name, (), "the file holds no tensors")
    for mark, kind in _OTHER_KINDS.items():
        marked = [key for key in tensors if mark in key]
        if marked:
            raise AdapterMismatch(name, marked, f"only plain LoRA is supported, and {kind}")
    odd = [key for key in tensors if not key.endswith(_PLAIN)]
    if odd:
        raise AdapterMismatch(name, odd, "these are not tensors of a LoRA")


def _rename(name: str, tensors: Tensors, unet_config: object) -> tuple[Tensors, dict[str, float]]:
    """All formats to `<target>.<layer>.lora_A.weight`, and alphas by `<target>.<layer>`."""
    if any(key.startswith(KOHYA) for key in tensors):
        state, raw_alphas = _from_kohya(name, tensors, unet_config)
    else:
        if not any(key.startswith(tuple(f"{target}." for target in TARGETS)) for key in tensors):
            # diffusers' first format was the UNet's alone and had no prefix.
            tensors = {f"unet.{key}": tensor for key, tensor in tensors.items()}
        state = {key: tensor for key, tensor in tensors.items() if not key.endswith(ALPHA)}
        raw_alphas = {
            key: float(tensor.item()) for key, tensor in tensors.items() if key.endswith(ALPHA)
        }
    alphas = {_layer_of_alpha(key): alpha for key, alpha in raw_alphas.items()}
    return {_peft_key(key): tensor for key, tensor in state.items()}, alphas


def _from_kohya(
    name: str, tensors: Tensors, unet_config: object
) -> tuple[Tensors, dict[str, float]]:
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    strangers = [key for key in tensors if not key.startswith(KOHYA)]
    halves = [
        key
        for key in tensors
        for this, other in (("lora_down", "lora_up"), ("lora_up", "lora_down"))
        if this in key and key.replace(this, other) not in tensors
    ]
    if strangers or halves:
        raise AdapterMismatch(
            name, strangers + halves, "tensors that belong to no layer, or half a pair"
        )
    sgm = [key for key in tensors if any(block in key for block in SGM)]
    try:
        # The converter empties its argument.
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            dict(tensors), unet_config=unet_config if sgm else None
        )
    except (ValueError, KeyError, IndexError) as error:
        raise AdapterMismatch(
            name, sgm or list(tensors), f"diffusers cannot read the layers' names: {error}"
        ) from error
    return state, alphas or {}


def _peft_key(key: str) -> str:
    """Any of diffusers' spellings of one `<target>.…` key as PEFT's."""
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    renamed: dict[str, None] = {key: None}
    if key.startswith("text_encoder"):
        # Both tables, because a kohya file comes out in a mix of the two.
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            renamed = convert_state_dict_to_peft(renamed, original_type=kind)  # type: ignore[no-untyped-call]
    else:
        renamed = convert_unet_state_dict_to_peft(renamed)  # type: ignore[no-untyped-call]
    return next(iter(renamed))


def _layer_of_alpha(key: str) -> str:
    """`<target>.<layer>` of an alpha, which kohya's converter may name after the down factor."""
    stem = key.removesuffix(ALPHA)
    return _peft_key(stem).removesuffix(DOWN)


def _couples(
    state: Tensors,
) -> Iterator[tuple[str, torch.Tensor | None, torch.Tensor | None]]:
    """Each layer with its down and up factors, in a fixed order."""
    layers = sorted({key.removesuffix(DOWN).removesuffix(UP) for key in state})
    for layer in layers:
        down, up = state.get(layer + DOWN), state.get(layer + UP)
        # A name that no converter knew ends in neither: report it as its own half.
        yield layer, down if down is not None else state.get(layer), up


def _scaling(
    target: str, layer: str, rank: int, alpha: float | None, config: Mapping[str, Any]
) -> float:
    """alpha / r: from the file's `.alpha`, else from PEFT's config, else 1."""
    if alpha is not None:
        return alpha / rank
    if f"{target}.lora_alpha" not in config:
        return 1.0
    from peft.utils.other import get_pattern_key

    pattern = config.get(f"{target}.alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), layer), config[f"{target}.lora_alpha"])
    # Rank-stabilised LoRA, arXiv 2312.03732.
    return float(alpha) / (rank**0.5 if config.get(f"{target}.use_rslora") else rank)
