"""Reading one LoRA file and fitting it to the model's layers, all of it or none."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sdxl_bento.diffusion.lora.keys import Pair, Tensors, pairs_by_target
from sdxl_bento.errors import AdapterMismatch, AdapterNotFound

SUFFIX = ".safetensors"
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one layer: `up @ down` for each unit of scale.

    Attributes:
        down: [r, in] for a linear layer, [r, in, kh, kw] for a convolution; the layer's dtype.
        up: [out, r], alpha / r folded in; the layer's dtype.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True)
class Adapter:
    """A loaded LoRA: target → module name → factors. `fingerprint`: SHA-256 of its file."""

    name: str
    layers: Mapping[str, Mapping[str, LowRank]]
    fingerprint: str
    stamp: Stamp

    @cached_property
    def nbytes(self) -> int:
        return sum(part.nbytes for layers in self.layers.values() for part in layers.values())


class Modules:
    """The layers of one target, by the names that LoRA files use for them."""

    def __init__(self, root: nn.Module, only: Collection[str] | None = None) -> None:
        """`only`: the names of those that can take an adapter; None: all."""
        self.root = root
        self.only = only
        self._by_name: dict[str, nn.Module] = dict(root.named_modules())

    def find(self, layer: str) -> tuple[str, nn.Module] | None:
        """(name, module). transformers has moved CLIP's layers into and out of `text_model`."""
        bare = layer.removeprefix("text_model.")
        for name in (layer, bare, f"text_model.{bare}"):
            if name in self._by_name:
                return name, self._by_name[name]
        return None

    def __getitem__(self, name: str) -> nn.Module:
        return self._by_name[name]


def stamp_of(path: Path) -> Stamp:
    """What changes when the file does."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def fingerprint_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_adapter(name: str, path: Path, targets: Mapping[str, Modules]) -> Adapter:
    """Read, rename, check and cast a whole file. Slow; nothing of the model is touched.

    Raises:
        AdapterNotFound: the file is gone.
        AdapterMismatch: it is not a complete safetensors file, not a plain LoRA, or for another
            model.
    """
    try:
        stamp = stamp_of(path)
        fingerprint = fingerprint_of(path)
        tensors, metadata = _read(path)
    except FileNotFoundError as error:
        raise AdapterNotFound(name, hint=f"its file {path.name} is gone") from error
    except (OSError, SafetensorError) as error:
        raise AdapterMismatch(name, [path.name], _why_unreadable(path, error)) from error
    unet_config = getattr(targets["unet"].root, "config", None) if "unet" in targets else None
    pairs = pairs_by_target(name, tensors, metadata, unet_config)
    return Adapter(name, _fit_all(name, pairs, targets), fingerprint, stamp)


def _read(path: Path) -> tuple[Tensors, dict[str, str]]:
    # The size is checked by the header before any tensor is touched.
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the file cannot be read, {os.strerror(error.errno or 0)}"
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        return "the file is a pickle, which can run code; only safetensors are read"
    return f"the file is cut short or is not safetensors, {error}"


def _fit_all(
    name: str, pairs: Mapping[str, Mapping[str, Pair]], targets: Mapping[str, Modules]
) -> dict[str, dict[str, LowRank]]:
    fitted: dict[str, dict[str, LowRank]] = {target: {} for target in pairs}
    misfits: defaultdict[str, list[str]] = defaultdict(list)
    for target, layers in pairs.items():
        for layer, pair in layers.items():
            match = targets[target].find(layer) if target in targets else None
            if match is None:
                misfits["the model has no such layer"] += pair.keys
                continue
            module_name, module = match
            only = targets[target].only
            reason = _misfit(pair, module)
            if only is not None and module_name not in only:
                reason = "the compiled model has no slot for the layer; SDXL_BACKEND=eager has"
            if reason:
                misfits[reason] += pair.keys
            elif not misfits:
                fitted[target][module_name] = _cast(pair, module)
    if misfits:
        raise AdapterMismatch(name, _joined(misfits.values()), _shortened(list(misfits)))
    return fitted


def _misfit(pair: Pair, module: nn.Module) -> str:
    """Why the factors cannot be added to the layer; empty if they can."""
    down, up = pair.down.shape, pair.up.shape
    if isinstance(module, nn.Linear):
        wanted: tuple[int, ...] = (module.in_features, 1, 1)
        outputs = module.out_features
    elif isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros":
            return "the layer is a grouped or padded convolution"
        wanted = (module.in_channels, *module.kernel_size)
        outputs = module.out_channels
    else:
        return f"the layer is a {type(module).__name__}, not a Linear or Conv2d"
    # A 1×1 convolution and a linear layer are the same thing, and files take either for it.
    as_conv = (*down[1:], 1, 1) if len(down) == 2 else tuple(down[1:])
    fits = as_conv == wanted and tuple(up[:2]) == (outputs, down[0]) and set(up[2:]) <= {1}
    if fits:
        return ""
    return f"shapes {list(down)} and {list(up)} do not fit {list(wanted)} → {outputs}"


def _cast(pair: Pair, module: nn.Module) -> LowRank:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    # Quantised layers have weights that one cannot compute in; offloaded ones have no device.
    dtype = weight.dtype if weight.is_floating_point() and weight.itemsize > 1 else pair.down.dtype
    device = torch.device("cpu") if weight.is_meta else weight.device
    down = pair.down.float()
    down = down.flatten(1) if isinstance(module, nn.Linear) else down
    if isinstance(module, nn.Conv2d) and down.dim() == 2:
        down = down[:, :, None, None]
    up = pair.up.float().flatten(1) * pair.scaling
    # Copies: what safetensors hands out is the mapped file, which may change under us.
    return LowRank(
        down.to(device, dtype, copy=True).contiguous(), up.to(device, dtype, copy=True).contiguous()
    )


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return [key for keys in lists for key in keys]


def _shortened(reasons: list[str], limit: int = 3) -> str:
    more = f" and {len(reasons) - limit} other reasons" if len(reasons) > limit else ""
    return "; ".join(reasons[:limit]) + more
