"""One compiled network at run time: named tensors in, one tensor out.

A module beside this one for each runtime (`onnx.py`, `openvino.py`, `inductor.py`) has a function
`load(path, options) -> Part`. What is the same for all of them, rows, padding, adapters and
tiling, is `compiled.py`'s business and not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdxl_bento.manifest import BackendInfo

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
    """

    info: BackendInfo
    device: torch.device
    weights: Path
    cache: Path | None = None
    threads: int = 0


class Part(Protocol):
    """A loaded network. The table of parts and their inputs is in `export/model/graphs.py`."""

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run it.

        Args:
            inputs: by name, on the part's device; floating ones in any floating dtype.

        Returns:
            The output on the same device, in any floating dtype.

        Raises:
            RuntimeError: with "not enough memory" in it where memory was short, or
                torch.OutOfMemoryError.
        """
        ...

    def unload(self) -> None:
        """Give the memory back. The part cannot be used any more."""
        ...
