"""Quantize the weights of a UNet's ONNX graph to eight bits, with a scale for each output channel.

The kinds of quantization are described in `kinds.py`. The layers that decide the picture most stay
as they are: the first and the last convolution, the embeddings of time and size, the shortcuts. The
large linear layers are those of `sdxl_bento/backends/quantized.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.compile.onnx_graph.kinds import QUANTIZATIONS
from export.compile.onnx_graph.static import Pairs, Ranges, range_of
from export.errors import ExportError
from sdxl_bento.backends.quantized import LARGE_LAYERS
from sdxl_bento.manifest import Quantization

CONVOLUTIONS = re.compile(r"(resnets\.\d+\.conv[12]|samplers\.\d+\.conv)$")
MOST = 127
PREFIX = "unet."  # of a weight's name, in graphs that torch.onnx wrote
EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph
Array = npt.NDArray[Any]


def quantize(
    path: Path, kind: Quantization, ranges: Ranges | None = None, *, outputs: bool = True
) -> None:
    """Quantize the graph at `path`, which holds float weights, in place.

    Args:
        path: of a UNet's graph with a `.data` file.
        kind: "int8-weights", "int8" or "int8-static".
        ranges: of the layers, for "int8-static".
        outputs: whether "int8-static" also rounds the outputs of convolutions. ONNX Runtime needs
            that, because it has no integer convolution with a float output. OpenVINO has one, and
            is more accurate with it.

    Raises:
        ExportError: there is no such kind for ONNX, or no layer in the graph to quantize.
    """
    import onnx

    if kind not in QUANTIZATIONS:
        raise ExportError(f"--quantize {kind}: for ONNX there are {', '.join(QUANTIZATIONS)}")
    model = onnx.load(path)
    number = model.graph.input[0].type.tensor_type.elem_type
    if kind != "int8-weights" and number != onnx.TensorProto.FLOAT:
        raise ExportError(
            f"--quantize {kind}: for ONNX it needs --compute-dtype fp32, and a CPU to run on"
        )
    if kind == "int8-static":
        changed = _static(model.graph, ranges or {}, outputs)
    else:
        changed = (_dequantize if kind == "int8-weights" else _multiply)(model.graph)
    if not changed:
        raise ExportError(f"{path.name}: no layer to quantize")
    data = path.with_suffix(".data")
    data.unlink()  # onnx would append to it
    onnx.save(
        model, path, save_as_external_data=True, location=data.name, size_threshold=EXTERNAL_BYTES
    )


def _dequantize(graph: Any) -> int:
    """Let a node compute each weight from eight bits, under the weight's name."""
    nodes = [
        _eight_bits(graph, tensor, transposed=False)
        for tensor, _ in _weights(graph, convolutions=True)
    ]
    _prepend(graph, nodes)
    return len(nodes)


def _eight_bits(graph: Any, tensor: Any, *, transposed: bool) -> Any:
    """The node that computes a weight [out, ...], or [in, out], under the weight's name."""
    import onnx

    weight, name = onnx.numpy_helper.to_array(tensor), tensor.name
    numbers, scale = _numbers(weight.reshape(len(weight), -1))
    numbers = np.ascontiguousarray(numbers.T) if transposed else numbers.reshape(weight.shape)
    _replace(graph, tensor, numbers, scale.astype(weight.dtype))
    return onnx.helper.make_node(
        "DequantizeLinear",
        [f"{name}_int8", f"{name}_scale"],
        [name],
        f"{name}_node",
        axis=int(transposed),
    )


def _static(graph: Any, ranges: Ranges, outputs: bool) -> int:
    """Pairs of nodes before each layer and its weight and, if wanted, after each convolution."""
    layers = {tensor.name: (tensor, layer) for tensor, layer in _weights(graph, convolutions=True)}
    transposes = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    pairs, nodes, used, count = Pairs(graph), [], set[str](), 0
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "MatMul"):
            continue
        weight = transposes.get(node.input[1], node.input[1])
        if weight not in layers:
            continue
        tensor, layer = layers[weight]
        spans = range_of(ranges, layer.removeprefix(PREFIX))
        count += 1
        used.add(node.input[1])
        x, before = pairs.before(node.input[0], spans.input)
        nodes[-1:] = [*before, _eight_bits(graph, tensor, transposed=node.op_type == "MatMul")]
        node.input[0], node.input[1] = x, weight
        nodes.append(node)
        if outputs and node.op_type == "Conv":
            y = node.output[0]
            node.output[0] = f"{y}_exact"
            nodes += pairs.pair(node.output[0], y, spans.output)
    del graph.node[:]
    graph.node.extend(n for n in nodes if n.op_type != "Transpose" or n.output[0] not in used)
    # The recorded shapes of the weights are no longer right.
    shapes = [value for value in graph.value_info if value.name not in layers]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    return count


def _multiply(graph: Any) -> int:
    """`MatMul(x, Transpose(weight))` becomes an integer product of the same output name."""
    import onnx

    wanted = {tensor.name: tensor for tensor, _ in _weights(graph, convolutions=False)}
    transposes = {n.output[0]: n for n in graph.node if n.op_type == "Transpose"}
    nodes, used = [], []
    for node in graph.node:
        transpose = transposes.get(node.input[1]) if node.op_type == "MatMul" else None
        if transpose is None or transpose.input[0] not in wanted:
            nodes.append(node)
            continue
        tensor = wanted[transpose.input[0]]
        weight = onnx.numpy_helper.to_array(tensor)
        numbers, scale = _numbers(weight)
        _replace(graph, tensor, np.ascontiguousarray(numbers.T), scale.astype(weight.dtype))
        nodes += _integer_product(tensor.name, node.input[0], node.output[0], tensor.data_type)
        used.append(transpose.output[0])
    del graph.node[:]
    graph.node.extend(n for n in nodes if n.op_type != "Transpose" or n.output[0] not in used)
    return len(used)


def _integer_product(weight: str, x: str, y: str, number: int) -> Iterator[Any]:
    """The nodes that ONNX Runtime fuses into one `DynamicQuantizeMatMul`."""
    from onnx.helper import make_node

    def name(part: str) -> str:
        return f"{weight}_{part}"

    yield make_node(
        "DynamicQuantizeLinear",
        [x],
        [name("x"), name("x_scale"), name("x_zero")],
        product_input(weight),
    )
    yield make_node(
        "MatMulInteger", [name("x"), name("int8"), name("x_zero")], [name("sum")], name("integers")
    )
    yield make_node("Cast", [name("sum")], [name("float_sum")], name("cast"), to=number)
    yield make_node("Mul", [name("x_scale"), name("scale")], [name("both_scales")], name("scales"))
    yield make_node("Mul", [name("float_sum"), name("both_scales")], [y], product(weight))


def product(weight: str) -> str:
    """Name of the node that computes a quantized linear layer's output, without its bias."""
    return f"{weight}_product"


def product_input(weight: str) -> str:
    """Name of the node that reads a quantized linear layer's input."""
    return f"{weight}_input"


def _weights(graph: Any, *, convolutions: bool) -> list[tuple[Any, str]]:
    """The initializers of the layers to quantize, with the layers' names."""
    weights = []
    for tensor in graph.initializer:
        layer = tensor.name.removesuffix(".weight")
        if layer == tensor.name or len(tensor.dims) not in (2, 4):
            continue
        if LARGE_LAYERS.search(layer) or (convolutions and CONVOLUTIONS.search(layer)):
            weights.append((tensor, layer))
    return weights


def _numbers(weight: Array) -> tuple[Array, Array]:
    """[out, n] -> int8 [out, n] and scales [out]; zero stays zero."""
    wide = weight.astype(np.float32)
    scale = np.maximum(np.abs(wide).max(axis=1), 1e-12) / MOST
    return np.rint(wide / scale[:, None]).astype(np.int8), scale


def _replace(graph: Any, tensor: Any, numbers: Array, scale: Array) -> None:
    import onnx

    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.append(onnx.numpy_helper.from_array(numbers, f"{name}_int8"))
    graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))


def _prepend(graph: Any, nodes: list[Any]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
