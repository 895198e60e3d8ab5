"""Fitting a file's layers to the model's, by their names, shapes and types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

from sdxl_bento.diffusion.lora.keys import Layer, LayerNames
from sdxl_bento.diffusion.lora.original_names import original_name
from sdxl_bento.diffusion.lora.tensors import FLOATS, INTEGERS, Entry
from sdxl_bento.errors import AdapterMismatch

Shape = tuple[int, ...]
LAYERS = (nn.Linear, nn.Conv2d)


class Modules:
    """The layers of one target, by the names that LoRA files use for them."""

    def __init__(self, root: nn.Module, only: Collection[str] | None = None) -> None:
        """`only`: the names of those that can take an adapter; None: all."""
        self.root = root
        self.only = only
        self._by_name: dict[str, nn.Module] = dict(root.named_modules())
        names = {name: name for name, each in self._by_name.items() if isinstance(each, LAYERS)}
        self._names = LayerNames(_original_names(root, names) | names)

    def find(self, layer: str) -> tuple[str, nn.Linear | nn.Conv2d] | None:
        """(name, module) of a layer by its name in a file."""
        name = self._names.find(layer)
        module = None if name is None else self._by_name[name]
        return (name, module) if name and isinstance(module, LAYERS) else None

    def __getitem__(self, name: str) -> nn.Module:
        return self._by_name[name]


@dataclass(frozen=True)
class Fit:
    """A layer of the file, and the module that it fits with the module's name."""

    layer: Layer
    name: str
    module: nn.Linear | nn.Conv2d


def fit(
    name: str,
    layers: Sequence[Layer],
    entries: Mapping[str, Entry],
    targets: Mapping[str, Modules],
) -> tuple[list[Fit], list[str]]:
    """Find the module of every layer.

    Args:
        name: of the adapter, for messages.
        layers: of the file.
        entries: name of a tensor → its shape and type.
        targets: the networks that the model has.

    Returns:
        The layers that fit, and the names of the tensors of layers that the model does not have.

    Raises:
        AdapterMismatch: a layer has another shape here, or the model lacks half of the layers or
            more, so that the file is for another model.
    """
    fits: dict[tuple[str, str], Fit] = {}
    misfits: defaultdict[str, list[str]] = defaultdict(list)
    absent: list[str] = []
    for layer in layers:
        match = targets[layer.target].find(layer.stem) if layer.target in targets else None
        if match is None:
            absent += layer.keys
            continue
        found = Fit(layer, *match)
        place = layer.target, found.name
        if place in fits:
            misfits["two pairs for one layer"] += (*fits[place].layer.keys, *layer.keys)
        elif reason := _misfit(found, entries, targets[layer.target].only):
            misfits[reason[0]] += reason[1]
        fits[place] = found
    if len(absent) >= sum(len(each.layer.keys) for each in fits.values()):
        misfits["the model has no such layer"] += absent
    if misfits:
        keys = [key for each in misfits.values() for key in each]
        raise AdapterMismatch(name, keys, _shortened(list(misfits)))
    return list(fits.values()), absent


def _original_names(root: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The original names of a UNet's modules → their names; of other networks, none."""
    layers = getattr(getattr(root, "config", None), "layers_per_block", None)
    if not isinstance(layers, int):
        return {}
    names = list(names)

    @cache
    def has_attention(block: str) -> bool:
        return any(name.startswith(f"up_blocks.{block}.attentions.") for name in names)

    return {original_name(name, layers, has_attention): name for name in names}


def _misfit(
    found: Fit, entries: Mapping[str, Entry], only: Collection[str] | None
) -> tuple[str, tuple[str, ...]] | None:
    """Why the factors cannot be added to the module, and the tensors that are the reason."""
    layer, module = found.layer, found.module
    if only is not None and found.name not in only:
        return "the compiled model has no slot for the layer; SDXL_BACKEND=eager has", layer.keys
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return "the layer is a grouped or padded convolution", layer.keys
    for key in layer.keys:
        if entries[key].dtype not in FLOATS:
            return f"factors of type {entries[key].dtype:.20}", (key,)
    if (alpha := layer.parts.get("alpha")) is not None:
        entry = entries[alpha]
        if entry.dtype not in FLOATS | INTEGERS or entry.shape not in ((), (1,), (1, 1)):
            found_alpha = f"{entry.dtype:.20} of shape {list(entry.shape)}"
            return f"alpha is {found_alpha}, not one number", (alpha,)
    shapes = {part: entries[key].shape for part, key in layer.parts.items()}
    reason = _wrong_shape(module, shapes["down"], shapes["up"], shapes.get("mid"))
    return (reason, layer.keys) if reason else None


def _wrong_shape(module: nn.Linear | nn.Conv2d, down: Shape, up: Shape, mid: Shape | None) -> str:
    """Why these shapes do not fit; empty if they do."""
    if isinstance(module, nn.Linear):
        wanted: Shape = (module.in_features, 1, 1)
        outputs = module.out_features
    else:
        wanted = (module.in_channels, *module.kernel_size)
        outputs = module.out_channels
    rank = down[0] if down else 0
    if rank == 0:
        return f"a rank of zero, in {list(down)}"
    # LoCon's third factor has the kernel, and the other two are then 1×1.
    ends = (wanted[0], 1, 1) if mid is not None else wanted
    # A 1×1 convolution and a linear layer are the same thing, and files take either for it.
    as_conv = (*down[1:], 1, 1) if len(down) == 2 else tuple(down[1:])
    fits = as_conv == ends and tuple(up[:2]) == (outputs, rank) and set(up[2:]) <= {1}
    if mid is not None:
        fits = fits and tuple(mid) == (rank, rank, *wanted[1:])
    if fits:
        return ""
    shown = " and ".join(str(list(shape)) for shape in (down, mid, up) if shape is not None)
    return f"shapes {shown} do not fit {list(wanted)} → {outputs}"


def _shortened(reasons: list[str], limit: int = 3) -> str:
    more = f" and {len(reasons) - limit} other reasons" if len(reasons) > limit else ""
    return "; ".join(reasons[:limit]) + more
