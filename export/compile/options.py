"""What a target is told when it compiles a part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.manifest import Quantization, WeightDtype

if TYPE_CHECKING:
    import torch

    from export.compile.onnx_graph.static import Ranges


@dataclass(frozen=True)
class CompileOptions:
    """One backend's choices, the same for all its parts.

    Attributes:
        device: what it is compiled for and on.
        dtype: what the UNet computes in; `vae_dtype` what the VAE's decoder does.
        sizes: pictures in pixels, (width, height), that get a shape of their own where the target
            has such; empty: any size.
        rows: numbers of UNet rows likewise.
        quantization: of the UNet's large matrices; None: none.
        weights: the written component's folder, with its safetensors.
        threads: of the CPU; 0 leaves the compiler's own choice.
        attention: which of PyTorch's attention kernels to prefer ("_native_cudnn"), where the
            target takes PyTorch's; None leaves it to PyTorch.
        ranges: of the UNet's layers, which static quantization needs.
        graphs: a folder with the same parts as ONNX graphs, for a target that is made from such:
            then nothing is traced. None: there are none.
    """

    device: torch.device
    dtype: WeightDtype
    vae_dtype: WeightDtype
    weights: Path
    sizes: tuple[tuple[int, int], ...] = ()
    rows: tuple[int, ...] = ()
    quantization: Quantization | None = None
    threads: int = 0
    attention: str | None = None
    ranges: Ranges | None = None
    graphs: Path | None = None
