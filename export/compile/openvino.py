"""Target `openvino`: the graphs of target `onnx`, as OpenVINO's IR.

The graph is float32; OpenVINO computes in bfloat16 where the manifest says so and the CPU can. A
UNet and its variant with slots share one file of weights, `<role>_unet.bin`.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from export.compile import onnx
from export.compile.options import CompileOptions
from export.errors import ExportError
from export.model.graphs import Graph
from sdxl_bento.backends.openvino import import_openvino, weights_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ALIGNMENT = 64  # bytes, as OpenVINO's own files

# The ONNX graphs on their way, by the folder they are for: the variant with slots is made of the
# plain one. Removed when this process ends.
_ON_THE_WAY: dict[Path, tempfile.TemporaryDirectory[str]] = {}


def traces(part: str, options: CompileOptions) -> bool:
    """Graphs that are there already are not traced again."""
    return options.graphs is None and onnx.traces(part, options)


def compile_part(
    graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
) -> Path:
    """Write the IR of one part into `folder`; returns its `.xml`.

    Raises:
        ExportError: it cannot be converted, or there is no UNet to add slots to.
    """
    if folder not in _ON_THE_WAY:
        _ON_THE_WAY[folder] = tempfile.TemporaryDirectory(prefix="sdxl-bento-onnx-")
    work = Path(_ON_THE_WAY[folder].name)
    if options.quantization == "int8":  # OpenVINO quantizes the inputs by itself
        options = replace(options, quantization="int8-weights")
    if options.graphs is None:
        source = onnx.compile_part(graph, program, work, options, outputs=False)
    else:
        source = options.graphs / onnx.file_name(graph.part)
    path = folder / f"{source.stem}.xml"
    convert(source, path, work)
    return path


def convert(source: Path, path: Path, work: Path) -> None:
    """Write an ONNX graph as IR to `path`, its weights into `weights_of(path)`.

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
    for file in (written, written.with_suffix(".bin")):
        file.unlink()


def share_weights(written: Path, path: Path, weights: Path) -> None:
    """Copy an IR so that its constants stand in `weights`, each content once.

    Args:
        written: an `.xml` with a `.bin` of its own.
        path: where to write the `.xml`.
        weights: a `.bin`, which is appended to if it is there already.
    """
    tree = ElementTree.parse(written)  # noqa: S314  written by OpenVINO just now
    own = written.with_suffix(".bin").read_bytes()
    places = _places(weights)
    with weights.open("ab") as file:
        for data in tree.iterfind("layers/layer[@type='Const']/data"):
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            content = own[start : start + size]
            key = hashlib.sha256(content).hexdigest()
            if key not in places:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                places[key] = file.tell()
                file.write(content)
            data.set("offset", str(places[key]))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _places(weights: Path) -> dict[str, int]:
    """Content -> where it stands already, from the graphs that use the file."""
    places: dict[str, int] = {}
    if weights.is_file():
        known = weights.read_bytes()
        for graph in weights.parent.glob(f"{weights.stem}*.xml"):
            tree = ElementTree.parse(graph)  # noqa: S314  our own
            for data in tree.iterfind("layers/layer[@type='Const']/data"):
                start, size = int(data.attrib["offset"]), int(data.attrib["size"])
                places[hashlib.sha256(known[start : start + size]).hexdigest()] = start
    return places
