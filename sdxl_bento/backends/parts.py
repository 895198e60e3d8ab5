"""One compiled network at run time (named tensors in, one tensor out), and the runtimes.

There is one module for each runtime beside this one, named as manifests name the runtime
(`onnx.py`, `openvino.py`, ...). When it is imported it registers the function that loads its
parts; it imports the runtime's own packages only inside functions. What all runtimes have in
common (numbers of rows, padding, adapters, tiling) is in `compiled.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo, BackendName

if TYPE_CHECKING:
    import torch


MOST_ROWS = 63  # of one forward: diffusers' upsampling takes another way from 64 on


@dataclass(frozen=True)
class PartOptions:
    """What a runtime needs to know to load a part.

    Attributes:
        info: what the manifest says of the backend: dtype, device, sizes, rows, quantization.
        device: where inputs come from and outputs go to.
        weights: the component's folder with its safetensors, for runtimes that share them.
        cache: a folder to keep what the runtime derives (engines, kernels); it may be read-only,
            and then nothing is kept. None: keep nothing.
        threads: of the CPU; 0 leaves the runtime's own choice.
        verify: whether files that the runtime has derived earlier are checked before it reads them.
        kernels: that OpenVINO keeps for shapes it has met.
    """

    info: BackendInfo
    device: torch.device
    weights: Path
    cache: Path | None = None
    threads: int = 0
    verify: bool = True
    kernels: int = 256


class Part(Protocol):
    """A loaded network. The table of parts and their inputs is in `export/model/graphs.py`."""

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run it.

        Args:
            inputs: by name, on the part's device; floating ones in any floating dtype.

        Returns:
            The output on the same device, in any floating dtype.

        Raises:
            DeviceOutOfMemory: the device's memory does not suffice for these inputs.
            RuntimeError: any other error of the runtime.
        """
        ...

    def unload(self) -> None:
        """Give the memory back. The part cannot be used any more."""
        ...


Load = Callable[[Path, PartOptions], Part]
Versions = Callable[[], dict[str, str]]


@dataclass(frozen=True)
class Runtime:
    """A way to run compiled parts.

    Attributes:
        load: load the part at a path. Raises ConfigurationError if that is not possible.
        versions: of the packages that a part is bound to, as this machine has them. Raises
            ImportError if one is not installed.
    """

    load: Load
    versions: Versions


_REGISTERED: dict[BackendName, Runtime] = {}


def register(name: BackendName, versions: Versions) -> Callable[[Load], Load]:
    """Decorate the function that loads a runtime's parts."""

    def registered(load: Load) -> Load:
        _REGISTERED[name] = Runtime(load, versions)
        return load

    return registered


def runtime(name: BackendName) -> Runtime:
    """The runtime that a manifest calls `name`. Only its own module is imported.

    Raises:
        ConfigurationError: there is no such runtime.
    """
    if name not in _REGISTERED:
        importlib.import_module(f"{__package__}.{name}")
    if name not in _REGISTERED:
        raise ConfigurationError(f"the backend {name} has no compiled parts to load")
    return _REGISTERED[name]
