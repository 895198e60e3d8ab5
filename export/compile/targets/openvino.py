"""Target `openvino`: the graphs of target `onnx`, converted to OpenVINO's IR.

The graph is float32; OpenVINO computes in bfloat16 where the manifest says so and the CPU has it.
A UNet and its variant with slots share one file of weights, `<role>_unet.bin`.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from export.compile.onnx_graph.kinds import QUANTIZATIONS
from export.compile.registry import Machine, Target, register
from export.compile.targets import onnx
from export.errors import ExportError
from sdxl_bento import scratch
from sdxl_bento.backends.openvino import import_openvino, weights_of
from sdxl_bento.manifest import Quantization

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph

ALIGNMENT = 64  # bytes, as in files that OpenVINO writes

# The quantization of the ONNX graph by that of the IR. For int8 OpenVINO quantizes the inputs of
# layers itself, so the graph holds the weights alone.
GRAPH_QUANTIZATIONS: Mapping[Quantization | None, Quantization | None] = {
    None: None,
    "int8-weights": "int8-weights",
    "int8": "int8-weights",
    "int8-static": "int8-static",
}

# Folders of intermediate ONNX graphs by the folder that they are converted into: a UNet's graph is
# kept for its variant with slots. They are removed when this process ends.
_INTERMEDIATE: dict[Path, tempfile.TemporaryDirectory[str]] = {}


def traces(part: str, options: CompileOptions) -> bool:
    """As for target `onnx`, but where its graphs are at hand nothing is traced."""
    return options.graphs is None and onnx.traces(part, options)


def compile_part(
    graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
) -> Path:
    """Write the IR of one part into `folder`; returns its `.xml`.

    Raises:
        ExportError: the part cannot be converted, or there is no UNet to add slots to.
    """
    if folder not in _INTERMEDIATE:
        _INTERMEDIATE[folder] = tempfile.TemporaryDirectory(prefix="sdxl-bento-onnx-")
        scratch.hold(Path(_INTERMEDIATE[folder].name))
    work = Path(_INTERMEDIATE[folder].name)
    options = replace(options, quantization=GRAPH_QUANTIZATIONS[options.quantization])
    if options.graphs is None:
        source = onnx.compile_part(graph, program, work, options, outputs=False)
    else:
        source = options.graphs / onnx.file_name(graph.part)
    path = folder / f"{source.stem}.xml"
    convert(source, path, work)
    return path


def convert(source: Path, path: Path, work: Path) -> None:
    """Write an ONNX graph as IR to `path`, its weights into `weights_of(path)`.

    Args:
        source: the ONNX graph.
        path: the `.xml` to write.
        work: a folder for intermediate files.

    Raises:
        ExportError: OpenVINO cannot convert it.
    """
    openvino = import_openvino()
    written = work / f"{path.stem}-own.xml"
    try:
        openvino.save_model(openvino.convert_model(source), written, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"{source.name}: OpenVINO cannot convert it: {error}") from error
    share_weights(written, path, weights_of(path))


def share_weights(written: Path, path: Path, weights: Path) -> None:
    """Move an IR so that its constants are stored in `weights`, equal ones of two graphs once.

    Files of weights are mapped into memory and never read as a whole, as they may be larger than
    the memory. The first graph's file of weights is taken as it is.

    Args:
        written: an `.xml` with a `.bin` of its own. Both are removed.
        path: where to write the `.xml`.
        weights: a `.bin`, which is appended to if it is there already.
    """
    own = written.with_suffix(".bin")
    if not weights.exists():
        shutil.move(own, weights)
        shutil.move(written, path)
        return
    tree = ElementTree.parse(written)  # noqa: S314  written by OpenVINO just now
    places = _places(weights)
    with _mapped(own) as contents, weights.open("ab") as file:
        for data in _constants(tree):
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            content = contents[start : start + size]
            key = hashlib.sha256(content).hexdigest()
            if key not in places:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                places[key] = file.tell()
                file.write(content)
            content.release()
            data.set("offset", str(places[key]))
    tree.write(path, encoding="utf-8", xml_declaration=True)
    for each in (written, own):
        each.unlink()


def _places(weights: Path) -> dict[str, int]:
    """Offsets in a file of weights by the hash of what is there, from the graphs that use it."""
    places: dict[str, int] = {}
    with _mapped(weights) as known:
        for graph in weights.parent.glob(f"{weights.stem}*.xml"):
            tree = ElementTree.parse(graph)  # noqa: S314  our own
            for data in _constants(tree):
                start, size = int(data.attrib["offset"]), int(data.attrib["size"])
                with known[start : start + size] as content:
                    places[hashlib.sha256(content).hexdigest()] = start
    return places


def _constants(tree: ElementTree.ElementTree[ElementTree.Element]) -> Iterator[ElementTree.Element]:
    """The entries of a graph that refer to its file of weights."""
    return tree.iterfind("layers/layer[@type='Const']/data")


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The content of a file, which the kernel reads as it is asked for."""
    with path.open("rb") as file:
        if not path.stat().st_size:  # which cannot be mapped
            yield memoryview(b"")
            return
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
        ):
            yield view


def _preference(machine: Machine) -> int:
    """With bfloat16 it is by far the fastest on a CPU."""
    if machine.cuda:
        return 0
    return 3 if machine.bf16 else 1


register(
    Target(
        name="openvino",
        summary="OpenVINO's IR, for x86 CPUs",
        devices=("cpu",),
        quantizations=QUANTIZATIONS,
        compile_part=compile_part,
        traces=traces,
        packages=("onnx", "onnxscript", "openvino"),
        preference=_preference,
        float32_graph=True,
        in_parallel=True,
        made_from="onnx",
        # An int8-static graph of target onnx rounds the outputs of convolutions too.
        convertible={
            kind: graph for kind, graph in GRAPH_QUANTIZATIONS.items() if kind != "int8-static"
        },
    )
)
