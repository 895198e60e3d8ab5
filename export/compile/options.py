"""The options with which a target compiles a part."""

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
    """The options of one backend. Only `weights` differs from part to part.

    Attributes:
        device: for which the part is compiled, and on which.
        dtype: in which the UNet computes.
        vae_dtype: in which the VAE's decoder computes.
        sizes: of pictures in pixels, (width, height), for which a target that compiles for fixed
            shapes is to compile; empty stands for any size.
        rows: numbers of UNet rows to compile for; empty stands for any number.
        quantization: of the UNet's large matrices; None: none.
        weights: the written component's folder, with its safetensors.
        threads: of the CPU; 0 leaves the compiler's own choice.
        attention: the attention kernel of PyTorch to prefer ("_native_cudnn"), where the target
            compiles PyTorch's attention; None leaves the choice to PyTorch.
        ranges: of the UNet's layers, which static quantization needs.
        graphs: a folder with the same parts as ONNX graphs, which the target converts instead of
            tracing; None if there is none.
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
