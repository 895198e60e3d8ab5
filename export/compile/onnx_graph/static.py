"""Static quantization: weights and inputs of a UNet's layers in eight bits, by measured ranges.

Around each large linear layer and each convolution but the first, the last and the shortcuts go
pairs of `QuantizeLinear` and `DequantizeLinear` ("QDQ"), which a runtime fuses with the layer into
one that multiplies integers. A weight has a signed number and a scale for each output channel. An
input has unsigned numbers, one scale and one zero for the whole tensor: what instructions such as
AVX-512 VNNI multiply. Ranges are `calibration.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import ExportError

MOST = 255  # of an unsigned number


@dataclass(frozen=True)
class Range:
    """What the numbers of a tensor lie in; it holds zero."""

    low: float = 0.0
    high: float = 0.0

    def wider(self, low: float, high: float) -> Range:
        """One that also holds these."""
        return Range(min(self.low, low), max(self.high, high))


@dataclass(frozen=True)
class LayerRanges:
    """Of what goes into a layer and what comes out of it."""

    input: Range = Range()
    output: Range = Range()


Ranges = Mapping[str, LayerRanges]  # by the layer's name in the UNet


class Pairs:
    """Makes pairs for the tensors of one graph; a tensor that several layers read gets one."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._made: dict[str, str] = {}

    def before(self, x: str, span: Range) -> tuple[str, list[Any]]:
        """The name under which layers read `x`, and the nodes to put there, if they are new."""
        if x in self._made:
            return self._made[x], []
        y = self._made[x] = f"{x}_rounded"
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
        ExportError: it was not run when ranges were measured.
    """
    found = ranges.get(layer)
    if found is None:
        raise ExportError(f"{layer}: no range was measured for it, which int8-static needs")
    return found
