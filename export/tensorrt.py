"""Target `tensorrt`: the graphs of target `onnx`, with engines built for sizes and rows.

Beside each graph goes `<graph>.json`, which names the graph and lists its profiles. Engines and the
timings that building them took are kept in `engines/`, so a second export, and the service, build
nothing anew. It needs a machine with the GPU that it will run on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from export import onnx
from export.errors import ExportError
from export.graphs import Graph
from export.options import CompileOptions
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
    """Write the graph of one part, its profiles and its engines; returns the file of profiles.

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
    content = {"graph": source.name, "profiles": list(profiles(graph, options))}
    path.write_text(json.dumps(content), "utf-8")
    (folder / ENGINES).mkdir(exist_ok=True)
    build_engines(path, options)
    return path


def profiles(graph: Graph, options: CompileOptions) -> Iterator[Profile]:
    """One for each size and number of rows; the slots of adapters vary within each."""
    scale = pixels_of_a_cell(options.weights)
    for width, height in options.sizes:
        cells = (height // scale, width // scale)
        if graph.part.endswith("vae_decoder"):
            channels = graph.inputs["latents"].shape[1]
            one, most = ((count, channels, *cells) for count in (1, MOST_DECODED))
            yield {"latents": (one, one, most)}
            continue
        for rows in options.rows:
            yield {
                name: _range(name, tuple(tensor.shape), rows, cells)
                for name, tensor in graph.inputs.items()
            }


def _range(name: str, example: tuple[int, ...], rows: int, cells: tuple[int, int]) -> Range:
    if name in ("down", "up"):
        width = example[2]
        return (
            (2, RANK_STEP, width),
            (2, USUAL_RANK, width),
            (1 + (1 << (max(rows, 2) - 1).bit_length()), MOST_RANK, width),
        )
    rest = (example[1], *cells) if len(example) == 4 else example[1:]
    shape = (rows, *rest)
    return shape, shape, shape


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
