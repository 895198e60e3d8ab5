"""Replace sequences of tensors in an ONNX graph by plain splits.

torch writes `chunk`, which halves the inputs of each GEGLU, as `SplitToSequence` and a `SequenceAt`
for each half. ONNX Runtime implements `SplitToSequence` on the CPU only, so on CUDA each one would
copy its input to the host and back. TensorRT implements neither.
"""

from __future__ import annotations

from typing import Any


def replace_sequences(model: Any) -> int:
    """Change an `onnx_ir` model in place; returns how many splits were replaced."""
    replaced = 0
    for node in list(model.graph):
        if node.op_type == "SplitToSequence" and (halves := _elements(node)):
            _split(model.graph, node, halves)
            replaced += 1
    return replaced


def _elements(node: Any) -> list[Any]:
    """The `SequenceAt` of each element in order; empty if a plain `Split` would not be the same."""
    readers: dict[int | None, Any] = {}
    for user, _ in node.outputs[0].uses():
        if user.op_type != "SequenceAt":
            return []
        readers[_number(user.inputs[1])] = user
    size, shape = _number(node.inputs[1]), node.inputs[0].shape
    axis = node.attributes["axis"].as_int()
    if size is None or None in readers or shape is None or not isinstance(shape[axis], int):
        return []
    count = len(readers)
    if sorted(readers, key=str) != list(range(count)) or shape[axis] != count * size:
        return []
    return [readers[index] for index in range(count)]


def _number(value: Any) -> int | None:
    """The value of a constant scalar; None for any other value."""
    import onnx_ir

    constant = onnx_ir.convenience.get_const_tensor(value)
    return None if constant is None or constant.size != 1 else int(constant.numpy().item())


def _split(graph: Any, node: Any, elements: list[Any]) -> None:
    import onnx_ir

    axis = onnx_ir.AttrInt64("axis", node.attributes["axis"].as_int())
    count = onnx_ir.AttrInt64("num_outputs", len(elements))
    split = onnx_ir.Node(
        "", "Split", [node.inputs[0]], [axis, count], num_outputs=len(elements), name=node.name
    )
    graph.insert_before(node, split)
    for new, element in zip(split.outputs, elements, strict=True):
        old = element.outputs[0]
        new.shape, new.type = old.shape, old.type
        name = old.name
        old.replace_all_uses_with(new)
        graph.remove(element, safe=True)
        new.name = name
    size = node.inputs[1]
    graph.remove(node, safe=True)
    if not size.uses():
        if size.producer() is not None:
            graph.remove(size.producer(), safe=True)
        else:
            graph.initializers.pop(size.name)
