"""Static quantization: weights and inputs of a UNet's layers in eight bits, by measured ranges.

Each large linear layer, and each convolution except the first, the last and the shortcuts, is put
between pairs of `QuantizeLinear` and `DequantizeLinear` ("QDQ"). A runtime fuses them with the
layer into one that multiplies integers. Weights are signed, with a scale for each output channel.
Inputs are unsigned, with one scale and one zero point for the whole tensor; this is what
instructions such as AVX-512 VNNI multiply. The ranges are measured by `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import ExportError

MOST = 255  # the largest unsigned number


@dataclass(frozen=True)
class Range:
    """The range of a tensor's numbers; it includes zero."""

    low: float = 0.0
    high: float = 0.0

    def wider(self, low: float, high: float) -> Range:
        """A range that also includes these."""
        return Range(min(self.low, low), max(self.high, high))


@dataclass(frozen=True)
class LayerRanges:
    """The ranges of a layer's input and output."""

    input: Range = Range()
    output: Range = Range()


Ranges = Mapping[str, LayerRanges]  # by the layer's name in the UNet


class Pairs:
    """Writes the pairs of one graph. A tensor that several layers read gets one pair."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._rounded: dict[str, str] = {}

    def before(self, x: str, span: Range) -> tuple[str, list[Any]]:
        """The name of the rounded `x`, and the nodes that compute it, unless the graph has them."""
        if x in self._rounded:
            return self._rounded[x], []
        y = self._rounded[x] = f"{x}_rounded"
        return y, self.pair(x, y, span)

    def pair(self, x: str, y: str, span: Range) -> list[Any]:
        """Nodes that round `x` to 256 steps of its range, as `y`."""
        from onnx import numpy_helper
        from onnx.helper import make_node

        scale = np.float32(max(span.high - span.low, 1e-12) / MOST)
        zero = np.uint8(np.clip(np.rint(-span.low / scale), 0, MOST))
        for name, value in ((f"{y}_scale", scale), (f"{y}_zero", zero)):
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        numbers = [f"{y}_scale", f"{y}_zero"]
        return [
            make_node("QuantizeLinear", [x, *numbers], [f"{y}_uint8"], f"{y}_quantize"),
            make_node("DequantizeLinear", [f"{y}_uint8", *numbers], [y], f"{y}_dequantize"),
        ]


def range_of(ranges: Ranges, layer: str) -> LayerRanges:
    """The layer's ranges.

    Raises:
        ExportError: the layer was not run when ranges were measured.
    """
    measured = ranges.get(layer)
    if measured is None:
        raise ExportError(f"{layer}: no range was measured for it, which int8-static needs")
    return measured
