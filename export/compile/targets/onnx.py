"""Target `onnx`: each part as an ONNX graph written by `torch.onnx`, for any rows and sizes.

The two graphs of a UNet share one file of weights, `<role>_unet.data`. The variant with slots is
not traced: it is the plain graph with nodes added (`onnx_graph/slots.py`), which takes a second
where tracing and converting takes half a minute, and both refer to the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.compile.onnx_graph.kinds import QUANTIZATIONS
from export.compile.registry import Machine, Target, register
from export.errors import ExportError
from export.model.parts import has_slots, is_decoder

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph

OPSET = 20


def traces(part: str, options: CompileOptions) -> bool:
    """Whether a part is converted from its own program; the one with slots is not."""
    return not has_slots(part)


def compile_part(
    graph: Graph,
    program: ExportedProgram | None,
    folder: Path,
    options: CompileOptions,
    *,
    outputs: bool = True,
) -> Path:
    """Write the ONNX graph of one part into `folder`; returns its file.

    The UNet must have been written before its variant with slots. `outputs` is passed on to
    `quantize`.

    Raises:
        ExportError: the part cannot be converted, or there is no UNet to add slots to.
    """
    path = folder / file_name(graph.part)
    if has_slots(graph.part):
        from export.compile.onnx_graph.slots import add_slots

        plain = path.with_name(path.name.replace("_slots", ""))
        if not plain.is_file():
            raise ExportError(f"{graph.part}: {plain.name} is to be written before it")
        add_slots(plain, path, graph.layout)
    else:
        assert program is not None
        write(program, path)
        if options.quantization and not is_decoder(graph.part):
            from export.compile.onnx_graph.quantize import quantize

            quantize(path, options.quantization, options.ranges, outputs=outputs)
    check(path)
    return path


def file_name(part: str) -> str:
    """The name of the file with a part's graph."""
    return f"{part.replace('/', '_')}.onnx"


def write(program: ExportedProgram, path: Path) -> None:
    """Convert a program into `path`, its weights into a file beside it that ends in `.data`.

    torch notes the paths of source files at every node. They are removed, so that the files say
    nothing of the machine that wrote them.
    """
    import onnx_ir
    import torch

    from export.compile.onnx_graph.splits import replace_sequences

    # `optimize` would take longer than the conversion, and runtimes do the same when they load.
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
    """Run ONNX's own checker over the graph, with inference of shapes.

    Raises:
        ExportError: the graph is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name}: not a valid ONNX graph: {error}") from error


def _forget(model: Any) -> None:
    """Remove the metadata that torch leaves: stack traces, class names, names of its nodes."""
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
    """Silence torch.onnx, which warns of missing torchvision operators and of deprecations."""
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


def _preference(machine: Machine) -> int:
    """With bfloat16 OpenVINO is the fastest on a CPU. Without, it is no faster on small models,
    and ONNX Runtime is ready sooner."""
    return 0 if machine.cuda else 2


register(
    Target(
        name="onnx",
        summary="ONNX graphs for ONNX Runtime",
        devices=("cuda", "cpu"),
        quantizations=QUANTIZATIONS,
        compile_part=compile_part,
        traces=traces,
        packages=("onnx", "onnxscript", "onnxruntime"),
        preference=_preference,
        exporters=("torch", "optimum"),
        in_parallel=True,
    )
)
