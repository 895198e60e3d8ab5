"""Reading one LoRA file.

Everything that the header tells is checked before the numbers are read: the kind of the adapter,
its layers' names, shapes and types. What fits is taken. What a plain LoRA cannot hold, such as
differences of biases, is left out and named. What shows that the file is for another model, or is
broken, refuses the whole file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdxl_bento.diffusion.lora.alphas import AlphaConfig
from sdxl_bento.diffusion.lora.factors import LowRank, factors
from sdxl_bento.diffusion.lora.fitting import Modules, fit
from sdxl_bento.diffusion.lora.folder import Stamp
from sdxl_bento.diffusion.lora.keys import group
from sdxl_bento.diffusion.lora.tensors import TensorFile, UnreadableFile
from sdxl_bento.errors import AdapterMismatch, AdapterNotFound


@dataclass(frozen=True)
class Adapter:
    """A loaded LoRA.

    Attributes:
        name: of the adapter.
        layers: target → module name → factors.
        fingerprint: SHA-256 of its file.
        stamp: of its file.
        skipped: the names of those of its tensors that have no effect.
    """

    name: str
    layers: Mapping[str, Mapping[str, LowRank]]
    fingerprint: str
    stamp: Stamp
    skipped: tuple[str, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        return sum(part.nbytes for layers in self.layers.values() for part in layers.values())


def read_adapter(name: str, path: Path, targets: Mapping[str, Modules]) -> Adapter:
    """Read, check and cast a whole file. Slow; nothing of the model is touched.

    Raises:
        AdapterNotFound: the file is gone.
        AdapterMismatch: it is not a complete safetensors file, not a plain LoRA, for another
            model, or has numbers that cannot be used.
    """
    try:
        with path.open("rb") as file:
            content = TensorFile(file)
            layers, strays = group(name, content.entries)
            config = AlphaConfig(name, content.metadata)
            fits, absent = fit(name, layers, content.entries, targets)
            wanted = {key for each in fits for key in each.layer.parts.values()}
            tensors, fingerprint = content.read(wanted)
    except FileNotFoundError as error:
        raise AdapterNotFound(name, hint=f"its file {path.name} is gone") from error
    except OSError as error:
        reason = f"the file cannot be read, {os.strerror(error.errno or 0)}"
        raise AdapterMismatch(name, [path.name], reason) from error
    except UnreadableFile as error:
        raise AdapterMismatch(name, [path.name], f"the file cannot be used, {error}") from error
    adapter: dict[str, dict[str, LowRank]] = {}
    for each in fits:
        layer = factors(name, each, tensors, config)
        adapter.setdefault(each.layer.target, {})[each.name] = layer
    return Adapter(name, adapter, fingerprint, content.stamp, (*strays, *absent))
