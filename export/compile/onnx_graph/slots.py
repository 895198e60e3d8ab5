"""Adapter slots for a UNet that is an ONNX graph already: nodes beside each layer that has a slot.

The nodes compute what the hooks of `sdxl_bento/backends/slots.py` do. A layer is found by the name
of its weight, so that slots can be added to a graph whose weights were quantized too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.compile.onnx_graph.quantize import PREFIX, product, product_input
from export.errors import ExportError
from sdxl_bento.backends.slots import SlotLayout

DEQUANTIZE = "DequantizeLinear"


def add_slots(
    plain: Path, path: Path, layout: SlotLayout, names: Mapping[str, str] | None = None
) -> None:
    """Write the graph of `plain` with three more inputs: slot [R], down [S, r, D], up [S, r, U].

    Args:
        plain: a UNet's graph.
        path: of the new graph, in the same folder, because both refer to the same file of weights.
        layout: of the UNet's layers.
        names: layer -> name of its weight in the graph, where it is not `unet.<layer>.weight`.

    Raises:
        ExportError: a layer with a slot is not in the graph.
    """
    import onnx

    model = onnx.load(plain, load_external_data=False)
    graph = model.graph
    wanted = {
        (names or {}).get(layer, f"{PREFIX}{layer}.weight"): layer for layer in layout.columns
    }
    sites = {site.last.output[0]: site for site in _sites(graph, wanted)}
    if missing := sorted(set(layout.columns) - {site.layer for site in sites.values()}):
        raise ExportError(f"{plain.name}: no layer {missing[0]!r} to give a slot to")
    sample = graph.input[0].type.tensor_type
    rows, number = sample.shape.dim[0].dim_param or "rows", sample.elem_type
    value_info = onnx.helper.make_tensor_value_info
    graph.input.append(value_info("slot", onnx.TensorProto.INT64, [rows]))
    graph.input.append(value_info("down", number, ["slots", "rank", layout.width_down]))
    graph.input.append(value_info("up", number, ["slots", "rank", layout.width_up]))
    nodes = list(graph.node)
    del graph.node[:]
    branches = _Branches(graph, layout)
    for node in nodes:
        if node.output[0] in sites:
            branches.add(sites[node.output[0]])
        else:
            graph.node.append(node)
    onnx.save(model, path)


@dataclass(frozen=True)
class _Site:
    """The place of a layer in the graph: its own node, its input `x`, and the last of its nodes.

    Where static quantization rounds input and output, `x` is the input before it is rounded and
    `last` rounds the output. So what an adapter adds is not rounded.
    """

    node: Any
    layer: str
    x: str
    last: Any


def _sites(graph: Any, wanted: Mapping[str, str]) -> Iterator[_Site]:
    rounded = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    exact = {n.output[0]: rounded.get(n.input[0]) for n in graph.node if n.op_type == DEQUANTIZE}
    after = {exact[n.output[0]]: n for n in graph.node if n.op_type == DEQUANTIZE}
    for node, layer, x in _layers(graph, wanted):
        yield _Site(node, layer, exact.get(x) or x, after.get(node.output[0], node))


def _layers(graph: Any, wanted: Mapping[str, str]) -> Iterator[tuple[Any, str, str]]:
    """Each wanted layer's node, the layer's name, and the node's input."""
    weights = dict(wanted)
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    inputs = {node.name: node.input[0] for node in graph.node if node.name and node.input}
    products = {product(weight): weight for weight in wanted}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            yield node, weights[node.input[1]], node.input[0]
        elif weight := products.get(node.name):
            yield node, wanted[weight], inputs[product_input(weight)]


class _Branches:
    """Appends nodes to a graph. The factors of all rows are gathered once, then split by layer."""

    def __init__(self, graph: Any, layout: SlotLayout) -> None:
        self._graph = graph
        self._constants: dict[tuple[Any, ...], str] = {}
        self._count = 0
        self._number = graph.input[0].type.tensor_type.elem_type
        columns = layout.columns
        self._down = self._divide("down", {n: c.down for n, c in columns.items()})
        self._up = self._divide("up", {n: c.up for n, c in columns.items()})

    def add(self, site: _Site) -> None:
        """Append the layer's last node, and the nodes that add what its row's adapter gives."""
        node, x, last = site.node, site.x, site.last
        y = last.output[0]
        last.output[0] = f"{y}_without_slot"
        self._graph.node.append(last)
        down, up = self._down[site.layer], self._up[site.layer]
        if node.op_type == "Conv":
            delta = self._conv(node, x, down, up)
        elif node.op_type == "Gemm":  # [R, in], where MatMul wants [R, 1, in]
            one = self._ints(1)
            wide = self._op("Unsqueeze", x, one)
            delta = self._op("Squeeze", self._linear(wide, down, up), one)
        else:
            delta = self._linear(x, down, up)
        self._op("Add", last.output[0], delta, output=y)

    def _linear(self, x: str, down: str, up: str) -> str:
        """x [R, n, in], down [R, r, in], up [R, r, out]."""
        return self._op("MatMul", self._op("MatMul", x, self._swapped(down)), up)

    def _conv(self, node: Any, x: str, down: str, up: str) -> str:
        """x [R, in, h, w], down [R, r, taps * in], up [R, r, out]; see `backends/slots.py`."""
        attributes = {a.name: list(a.ints) for a in node.attribute if a.ints}
        kernel = attributes["kernel_shape"]
        strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
        taps = math.prod(kernel)
        factors = self._op("Reshape", down, self._ints(0, -1, self._channels(node)))
        cells = self._op("Reshape", x, self._ints(0, 0, -1))
        planes = self._op("MatMul", factors, cells)  # [R, r * taps, h * w]
        if taps > 1 or strides != [1, 1]:
            sides = self._op("Shape", x, start=2)
            shape = self._op("Concat", self._ints(-1, taps), sides, axis=0)
            shifted = self._op(
                "Conv", self._op("Reshape", planes, shape), self._eye(taps, kernel),
                strides=strides, pads=pads, kernel_shape=kernel,
            )  # fmt: skip
            ranks = self._op("Shape", down, start=0, end=2)
            shape = self._op("Concat", ranks, self._ints(-1), axis=0)
            planes = self._op("Reshape", shifted, shape)  # [R, r, h' * w']
        delta = self._op("MatMul", self._swapped(up), planes)
        return self._op("Reshape", delta, self._op("Shape", node.output[0]))

    def _divide(self, table: str, columns: Mapping[str, slice]) -> dict[str, str]:
        """Each layer's part [R, r, columns] of the factors in the rows' slots."""
        import onnx

        rows = self._op("Gather", table, "slot", axis=0)
        widths = self._ints(*(c.stop - c.start for c in columns.values()))
        outputs = {layer: f"{table}_of_{layer}" for layer in columns}
        self._graph.node.append(
            onnx.helper.make_node("Split", [rows, widths], list(outputs.values()), axis=2)
        )
        return outputs

    def _channels(self, node: Any) -> int:
        """Input channels of a convolution, from the shape of its weight."""
        for initializer in self._graph.initializer:
            if initializer.name in (node.input[1], f"{node.input[1]}_int8"):
                return int(initializer.dims[1])
        raise ExportError(f"{node.input[1]}: a convolution whose weight is not in the graph")

    def _swapped(self, x: str) -> str:
        return self._op("Transpose", x, perm=[0, 2, 1])

    def _ints(self, *values: int) -> str:
        import numpy as np

        return self._constant(("ints", *values), np.array(values, np.int64))

    def _eye(self, taps: int, kernel: Sequence[int]) -> str:
        """A kernel that takes from each tap's plane the cell at that tap: [1, taps, *kernel]."""
        import numpy as np
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(self._number)
        return self._constant(("eye", *kernel), np.eye(taps, dtype=dtype).reshape(1, taps, *kernel))

    def _constant(self, key: tuple[Any, ...], value: Any) -> str:
        import onnx

        if key not in self._constants:
            name = self._constants[key] = f"slots_constant_{len(self._constants)}"
            self._graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return self._constants[key]

    def _op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        import onnx

        self._count += 1
        output = output or f"slots_{self._count}"
        self._graph.node.append(
            onnx.helper.make_node(
                kind, inputs, [output], name=f"slots_node_{self._count}", **attributes
            )
        )
        return output
