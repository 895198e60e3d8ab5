"""Weights of an ONNX graph in eight bits."""

from __future__ import annotations

from pathlib import Path

from sdxl_bento.manifest import Quantization


def quantize(path: Path, kind: Quantization) -> None:
    """Not there yet."""
    raise NotImplementedError(kind)
