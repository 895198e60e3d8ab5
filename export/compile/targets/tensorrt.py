"""Target `tensorrt`: the graphs of target `onnx`, with engines built for sizes and rows.

A file `<graph>.json` beside each graph names the graph and holds its profile: the range from the
smallest to the largest of the sizes and rows that were asked for, tuned for the first size and the
most rows. A profile for each shape would be quicker, but ONNX Runtime runs the first one only
(microsoft/onnxruntime, pull request 31624). Engines, and the timings that were taken to build them,
are kept in `engines/`, so that neither a second export nor the service builds them again. The
export needs a machine with the GPU that the model will run on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.compile.registry import Target, register
from export.compile.targets import onnx
from export.errors import ExportError
from export.model.parts import is_decoder
from sdxl_bento.backends.tensorrt import ENGINES, Profile, Range, load

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph

USUAL_RANK, MOST_RANK = 16, 64  # of the adapters of one row together
MOST_DECODED = 4  # pictures at once


def compile_part(
    graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
) -> Path:
    """Write the graph of one part, its profile and its engine; returns the profile's file.

    Raises:
        ExportError: sizes or rows are missing, a quantization is set, or the part cannot be
            converted.
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
    """The profile of a part's inputs: all sizes, numbers of rows and slots, and those between."""
    scale = pixels_of_a_cell(options.weights)
    sizes = [(height // scale, width // scale) for width, height in options.sizes]
    if is_decoder(graph.part):
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
    """The smallest, the first and the largest size; heights and widths are taken separately."""
    heights, widths = zip(*sizes, strict=True)
    return (min(heights), min(widths)), sizes[0], (max(heights), max(widths))


def _range(
    name: str, example: tuple[int, ...], rows: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> Range:
    from sdxl_bento.backends.slots import RANK_STEP

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
    """Pixels of a latent cell's side, from the VAE's config beside the component's folder."""
    config = json.loads((weights.parent / "vae" / "config.json").read_text("utf-8"))
    return int(2 ** (len(config["block_out_channels"]) - 1))


def build_engines(path: Path, options: CompileOptions) -> None:
    """Load the part once: ONNX Runtime builds its engines and writes them into `ENGINES`."""
    from sdxl_bento.backends.parts import PartOptions
    from sdxl_bento.manifest import BackendInfo

    info = BackendInfo(backend="tensorrt", device="cuda", versions={}, dtype=options.dtype)
    load(path, PartOptions(info, options.device, options.weights)).unload()


register(
    Target(
        name="tensorrt",
        summary="ONNX graphs with TensorRT engines, for NVIDIA GPUs",
        devices=("cuda",),
        quantizations=(),
        compile_part=compile_part,
        traces=onnx.traces,
        packages=("onnx", "onnxscript", "onnxruntime"),
    )
)
