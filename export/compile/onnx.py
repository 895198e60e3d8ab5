"""Target `onnx`: each part as an ONNX graph by `torch.onnx`, rows and sizes free.

The weights of a UNet stand once in a file beside its graphs, `<role>_unet.data`. Its variant with
slots is not traced: it is the plain graph with nodes added (`onnx_slots.py`), which takes a second
where tracing and converting takes half a minute, and both name the same weights by construction.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.compile.onnx_graph.splits import replace_sequences
from export.compile.options import CompileOptions
from export.errors import ExportError
from export.model.graphs import Graph, UNetSlots

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 20


def traces(part: str, options: CompileOptions) -> bool:
    """Whether `compile_part` reads the program of this part; without it, None will do."""
    return not part.endswith("_slots")


def compile_part(
    graph: Graph,
    program: ExportedProgram | None,
    folder: Path,
    options: CompileOptions,
    *,
    outputs: bool = True,
) -> Path:
    """Write the ONNX graph of one part into `folder`; returns its file.

    The UNet must have been written before its variant with slots. `outputs` is `quantize`'s.

    Raises:
        ExportError: it cannot be converted, or there is no UNet to add slots to.
    """
    path = folder / file_name(graph.part)
    if isinstance(graph.module, UNetSlots):
        from export.compile.onnx_graph.slots import add_slots

        plain = path.with_name(path.name.replace("_slots", ""))
        if not plain.is_file():
            raise ExportError(f"{graph.part}: {plain.name} is to be written before it")
        add_slots(plain, path, graph.module.layout)
    else:
        assert program is not None
        write(program, path)
        if options.quantization and graph.part.endswith("/unet"):
            from export.compile.onnx_graph.quantize import quantize

            quantize(path, options.quantization, options.ranges, outputs=outputs)
    check(path)
    return path


def file_name(part: str) -> str:
    """What the graph of a part is called."""
    return f"{part.replace('/', '_')}.onnx"


def write(program: ExportedProgram, path: Path) -> None:
    """Convert a program; its weights go beside `path`, into a file ending in `.data`.

    Neither holds anything of this machine: torch notes source paths at every node, which are
    removed.
    """
    import onnx_ir
    import torch

    # Not `optimize`: it takes longer than the conversion, and the runtimes do the same at load.
    with _quietly():
        converted = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False
        )
    if converted is None:
        raise ExportError(f"{path.name}: torch.onnx gave no graph")
    model = converted.model
    replace_sequences(model)
    _forget(model)
    onnx_ir.save(model, path, external_data=f"{path.stem}.data")


def check(path: Path) -> None:
    """Let ONNX's own checker read the graph, shapes included.

    Raises:
        ExportError: it is not a valid graph.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name}: not a valid ONNX graph: {error}") from error


def _forget(model: Any) -> None:
    """Drop the notes that torch leaves: stack traces, class names, its own nodes."""
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


@contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx warns that torchvision's operators are absent, and of its own deprecations."""
    import logging

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
