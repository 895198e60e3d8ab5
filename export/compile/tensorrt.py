"""Target `tensorrt`: the graphs of target `onnx`, with engines built for sizes and rows.

Beside each graph goes `<graph>.json`, which names the graph and has its profile: from the smallest
to the largest of the sizes and rows that were asked for, tuned for the first size and the most
rows. A profile for each shape would be quicker, but ONNX Runtime runs the first one only
(microsoft/onnxruntime, pull request 31624). Engines and the timings that building them took are
kept in `engines/`, so a second export, and the service, build nothing anew. It needs a machine with
the GPU that it will run on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.compile import onnx
from export.compile.options import CompileOptions
from export.errors import ExportError
from export.model.graphs import Graph
from sdxl_bento.backends.slots import RANK_STEP
from sdxl_bento.backends.tensorrt import ENGINES, Profile, Range, load

if TYPE_CHECKING:
    from torch.export import ExportedProgram

traces = onnx.traces
USUAL_RANK, MOST_RANK = 16, 64  # of the adapters of one row together
MOST_DECODED = 4  # pictures at once


def compile_part(
    graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
) -> Path:
    """Write the graph of one part, its profile and its engine; returns the profile's file.

    Raises:
        ExportError: no sizes or rows were given, a quantization was, or it cannot be converted.
    """
    if not options.sizes or not options.rows:
        raise ExportError(
            "--target tensorrt builds engines for the shapes that it is told: give --sizes, as "
            "1024x1024, and --rows, as 1,2,4,8"
        )
    if options.quantization:
        raise ExportError(f"--quantize {options.quantization}: there is none for tensorrt")
    source = onnx.compile_part(graph, program, folder, options)
    path = source.with_suffix(".json")
    content = {"graph": source.name, "profile": profile(graph, options)}
    path.write_text(json.dumps(content), "utf-8")
    (folder / ENGINES).mkdir(exist_ok=True)
    build_engines(path, options)
    return path


def profile(graph: Graph, options: CompileOptions) -> Profile:
    """All sizes and numbers of rows, and what lies between; the slots of adapters likewise."""
    scale = pixels_of_a_cell(options.weights)
    sizes = [(height // scale, width // scale) for width, height in options.sizes]
    if graph.part.endswith("vae_decoder"):
        channels = graph.inputs["latents"].shape[1]
        least, usual, most = _ends(sizes)
        return {
            "latents": (
                (1, channels, *least),
                (1, channels, *usual),
                (MOST_DECODED, channels, *most),
            )
        }
    return {
        name: _range(name, tuple(tensor.shape), options.rows, sizes)
        for name, tensor in graph.inputs.items()
    }


def _ends(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The smallest, the first, the largest: height and width each for itself."""
    heights, widths = zip(*sizes, strict=True)
    return (min(heights), min(widths)), sizes[0], (max(heights), max(widths))


def _range(
    name: str, example: tuple[int, ...], rows: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> Range:
    if name in ("down", "up"):
        width = example[2]
        return (
            (2, RANK_STEP, width),
            (2, USUAL_RANK, width),
            (1 + (1 << (max(*rows, 2) - 1).bit_length()), MOST_RANK, width),
        )
    counts = min(rows), max(rows), max(rows)
    if len(example) != 4:
        least, usual, most = ((count, *example[1:]) for count in counts)
    else:
        least, usual, most = (
            (count, example[1], *cells) for count, cells in zip(counts, _ends(sizes), strict=True)
        )
    return least, usual, most


def pixels_of_a_cell(weights: Path) -> int:
    """The VAE's scale factor, from its config beside the component's folder."""
    config = json.loads((weights.parent / "vae" / "config.json").read_text("utf-8"))
    return int(2 ** (len(config["block_out_channels"]) - 1))


def build_engines(path: Path, options: CompileOptions) -> None:
    """Load the part once, which builds its engines and writes them beside it."""
    from sdxl_bento.backends.parts import PartOptions
    from sdxl_bento.manifest import BackendInfo

    info = BackendInfo(backend="tensorrt", device="cuda", versions={}, dtype=options.dtype)
    load(path, PartOptions(info, options.device, options.weights)).unload()
