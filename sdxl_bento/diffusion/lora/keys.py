"""The names inside a LoRA file: which layer of which target each tensor belongs to.

A name is a layer's name with a prefix for the target and an ending for the part:

=========================================  ===================================================
prefix                                     written by
=========================================  ===================================================
`lora_unet_`, `lora_te1_`, `lora_te2_`     kohya and most files on civitai; `_` instead of dots
`lycoris_`                                 LyCORIS around a UNet
`unet.`, `text_encoder.`, …                diffusers
`diffusion_model.`, `text_encoders.clip_l.transformer.`   ComfyUI; also with `model.` in front
`clip_l.`, `clip_g.`                       OneTrainer
none, `base_model.model.`                  diffusers' first format; PEFT
=========================================  ===================================================

The endings are `.lora_down.weight`, `.lora_A.weight`, `.lora_A.<adapter>.weight`,
`.lora.down.weight`, `_lora.down.weight`, `.lora_linear_layer.down.weight`, and the same for the
other factor; `.lora_mid.weight` and `.alpha`. Any prefix may be combined with any ending. The
layer's name may be diffusers' or the original one (`lora.original_names`), with dots or with `_`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sdxl_bento.errors import AdapterMismatch

TARGETS = ("unet", "text_encoder", "text_encoder_2")

# With `_` for dots. The longer of two prefixes that begin alike comes first.
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_": "unet",
    "model_diffusion_model_": "unet",
    "diffusion_model_": "unet",
    "unet_": "unet",
    "text_encoder_2_": "text_encoder_2",
    "text_encoder_": "text_encoder",
    "conditioner_embedders_0_transformer_": "text_encoder",
    "text_encoders_clip_l_transformer_": "text_encoder",
    "text_encoders_clip_g_transformer_": "text_encoder_2",
    "text_encoders_clip_l_": "text_encoder",
    "text_encoders_clip_g_": "text_encoder_2",
    "clip_l_": "text_encoder",
    "clip_g_": "text_encoder_2",
}
# What PEFT, torch.compile and DataParallel put in front of a module's names.
_WRAPPERS = ("base_model_model_", "_orig_mod_", "module_")
_FACTOR = re.compile(
    r"[._]lora(?:_linear_layer)?[._](?P<part>down|up|mid|A|B)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?$"
)
_ALPHA = re.compile(r"(?:[._]lora(?:_linear_layer)?)?\.alpha$")
_PARTS = {"A": "down", "B": "up"}

# What else is called a LoRA, by what gives it away in the names of its tensors. These change every
# layer in another way, so that what a LoRA can express of them would be another adapter.
_OTHER_KINDS = {
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"[._]dora_scale|lora_magnitude_vector": "a DoRA",
    r"[._]b?oft_": "an OFT adapter",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"ia3_l|\.on_input$": "an (IA)³ adapter",
    r"vera_lambda": "a VeRA",
}
_DIFFERENCE = re.compile(r"\.(diff|diff_b|w_norm|b_norm|set_weight)$")


@dataclass
class Layer:
    """The tensors of one layer, by their names in the file.

    Attributes:
        target: one of `TARGETS`.
        stem: the layer's name in the file without prefix and ending, with `_` for dots.
        parts: "down", "up", "mid" and "alpha", those that there are → the tensor's name.
    """

    target: str
    stem: str
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the factors."""
        return tuple(key for part, key in self.parts.items() if part != "alpha")


def group(name: str, keys: Iterable[str]) -> tuple[list[Layer], list[str]]:
    """Sort the names of a file's tensors by layer.

    Args:
        name: of the adapter, for messages.
        keys: the names of all tensors in the file.

    Returns:
        The layers, and the names of tensors that belong to no LoRA layer: differences of biases
        and norms, embeddings, notes of the training.

    Raises:
        AdapterMismatch: the file is another kind of adapter, or none; a factor is missing or
            there twice.
    """
    keys = sorted(keys)
    _refuse_other_kinds(name, keys)
    layers: dict[tuple[str, str], Layer] = {}
    strays: list[str] = []
    for key in keys:
        split = _split(key)
        if split is None:
            strays.append(key)
            continue
        target, stem, part = split
        layer = layers.setdefault((target, stem), Layer(target, stem))
        if part in layer.parts:
            raise AdapterMismatch(name, [layer.parts[part], key], "two tensors for one factor")
        layer.parts[part] = key
    whole = _whole_pairs(name, layers.values())
    strays += [each.parts["alpha"] for each in layers.values() if not each.keys]
    if not whole:
        _refuse_without_factors(name, keys)
    return whole, sorted(strays)


def _split(key: str) -> tuple[str, str, str] | None:
    """(target, stem, part) of a tensor's name; None if it is none of a LoRA's."""
    if factor := _FACTOR.search(key):
        part = _PARTS.get(factor["part"], factor["part"])
        stem = key[: factor.start()]
    elif alpha := _ALPHA.search(key):
        part, stem = "alpha", key[: alpha.start()]
    else:
        return None
    stem = _unwrapped(_flat(stem))
    for prefix, target in _PREFIXES.items():
        if stem.startswith(prefix):
            return target, _unwrapped(stem.removeprefix(prefix)), part
    return "unet", stem, part


def _unwrapped(stem: str) -> str:
    while stem.startswith(_WRAPPERS):
        for wrapper in _WRAPPERS:
            stem = stem.removeprefix(wrapper)
    return stem


def _refuse_other_kinds(name: str, keys: Collection[str]) -> None:
    if not keys:
        raise AdapterMismatch(name, (), "the file holds no tensors")
    for mark, kind in _OTHER_KINDS.items():
        marked = [key for key in keys if re.search(mark, key)]
        if marked:
            raise AdapterMismatch(name, marked, f"only plain LoRA is supported, and it is {kind}")


def _whole_pairs(name: str, layers: Iterable[Layer]) -> list[Layer]:
    """The layers that have factors. Raises AdapterMismatch if one of a pair is missing."""
    found = [layer for layer in layers if layer.keys]
    halves = [
        key for layer in found if not {"down", "up"} <= layer.parts.keys() for key in layer.keys
    ]
    if halves:
        raise AdapterMismatch(name, halves, "half a pair, the other factor is missing")
    return found


def _refuse_without_factors(name: str, keys: Collection[str]) -> None:
    differences = [key for key in keys if _DIFFERENCE.search(key)]
    if differences:
        raise AdapterMismatch(
            name, differences, "only plain LoRA is supported, and it holds full weight differences"
        )
    raise AdapterMismatch(name, list(keys), "these are not tensors of a LoRA")


def _flat(name: str) -> str:
    """A name with `_` for dots, as kohya writes it; the form in which names are compared."""
    return name.replace(".", "_")


class LayerNames:
    """Finds a target's modules by the names that LoRA files use for them."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: of the modules, and any other name of theirs → the module's name."""
        self._by_flat = {_bare(_flat(alias)): name for alias, name in names.items()}

    def find(self, stem: str) -> str | None:
        """The module's name for a `Layer.stem`; None if there is no such module."""
        wanted = _bare(stem)
        # The names of diffusers' attention processors, which it used for CLIP's attention, too.
        older = wanted.replace("_processor_to_", "_to_")
        clip = re.sub(r"_to_([qkv]|out)$", r"_\1_proj", older)
        for candidate in (wanted, older, re.sub(r"_to_out$", "_to_out_0", older), clip):
            if candidate in self._by_flat:
                return self._by_flat[candidate]
        return None


def _bare(name: str) -> str:
    """Without the level of CLIP's that transformers has moved layers into and out of."""
    return name.removeprefix("text_model_")
