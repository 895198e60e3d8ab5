"""Compile a written model for one target, part by part; choose the eager model's attention."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from export.components import DTYPES, component_of, load_component
from export.errors import ExportError
from export.graphs import Graph, decoder_graph, unet_example, unet_graph
from export.layout import Role
from export.options import CompileOptions
from export.parity import pick_vae_dtype
from export.progress import Progress
from export.targets import TargetRequest
from sdxl_bento.manifest import BackendInfo, PipelineInfo, WeightDtype

MOST_EXAMPLE_CELLS = 32  # side of the latents that a graph is traced with


def compile_target(
    request: TargetRequest,
    folder: Path,
    pipelines: Mapping[Role, PipelineInfo],
    attention: str | None,
    progress: Progress,
) -> BackendInfo:
    """Compile UNets and VAE decoders of the written model in `folder`.

    `attention` names the kernels of PyTorch that compiled attention is to prefer. Returns what the
    manifest is to say of the backend; it has not been verified yet.

    Raises:
        ExportError: it cannot be compiled here.
    """
    began = time.perf_counter()
    from export.optimum import export_parts

    info, compiler = request.info(), request.target.compiler
    target = folder / "compiled" / info.label
    target.mkdir(parents=True)
    artifacts: dict[str, str] = {}
    vae_dtype = info.dtype or "fp32"
    for role, pipeline in pipelines.items():
        root = folder / pipeline.path
        if role == "base":
            with progress.stage("Choose the dtype of the VAE"):
                vae_dtype = pick_vae_dtype(root / "vae", info.dtype or "fp32", request.device)
        if info.exporter == "optimum":
            with progress.stage(f"Let optimum export the {role} model"):
                options = _options(request, info, vae_dtype, root / "unet", attention)
                for part, path in export_parts(folder, role, target, options).items():
                    artifacts[part] = path.relative_to(folder).as_posix()
            continue
        for part in parts_of(role):
            with progress.stage(f"Compile {part} for {info.label}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of compilers' own making: nothing to act on
                options = _options(request, info, vae_dtype, root / component_of(part), attention)
                module = _load(request, part, options)
                if request.target.quantizes_module and component_of(part) == "unet":
                    _quantize(module, info)
                graph = _graph(part, role, module, _example_cells(request, pipeline))
                program = graph.trace() if compiler.traces(part) else None
                path = compiler.compile_part(graph, program, target, options)
                artifacts[part] = path.relative_to(folder).as_posix()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    changes = {
        "vae_dtype": vae_dtype,
        "attention": attention if info.backend == "inductor" else None,
        "artifacts": artifacts,
        "bytes": size,
        "compile_seconds": round(time.perf_counter() - began, 2),
    }
    return info.model_copy(update=changes)


def parts_of(role: Role) -> tuple[str, ...]:
    """What is compiled of a pipeline. Adapters are for the base model."""
    names = ("unet", "unet_slots", "vae_decoder") if role == "base" else ("unet", "vae_decoder")
    return tuple(f"{role}/{name}" for name in names)


def _options(
    request: TargetRequest,
    info: BackendInfo,
    vae_dtype: WeightDtype,
    weights: Path,
    attention: str | None,
) -> CompileOptions:
    return CompileOptions(
        device=request.device,
        dtype=info.dtype or "fp32",
        vae_dtype=vae_dtype,
        weights=weights,
        sizes=request.sizes,
        rows=request.rows,
        quantization=info.quantization,
        threads=request.threads,
        attention=attention,
    )


def _load(request: TargetRequest, part: str, options: CompileOptions) -> Any:
    dtype = options.vae_dtype if part.endswith("vae_decoder") else options.dtype
    if request.target.float32_graph:
        dtype = "fp32"
    return load_component(options.weights, DTYPES[dtype], options.device)


def _quantize(unet: Any, info: BackendInfo) -> None:
    from sdxl_bento.backends.quantized import quantize_unet

    if info.quantization is not None:
        quantize_unet(unet, info.quantization)


def choose_attention(
    folder: Path, pipeline: PipelineInfo, wanted: str, progress: Progress
) -> str | None:
    """The attention backend that the eager model is to run with; None leaves it to PyTorch.

    Args:
        folder: of the base UNet.
        pipeline: the base model's.
        wanted: "auto" measures those that are installed, on a GPU alone; or a name.
        progress: what the user sees.

    Raises:
        ExportError: the one that was named does not run here, or not well enough.
    """
    from export.attention import pick_attention
    from sdxl_bento.backends.attention import installed

    cuda = torch.cuda.is_available()
    if wanted == "auto" and not cuda:
        return None
    device = torch.device("cuda" if cuda else "cpu")
    with progress.stage("Choose the attention backend"):
        unet = load_component(folder, torch.float16 if cuda else torch.float32, device)
        side = pipeline.width // pipeline.vae_scale_factor
        inputs = unet_example("base", unet, rows=2, height=side, width=side)
        candidates = installed(device) if wanted == "auto" else [wanted]
        choice = pick_attention(unet, inputs, candidates)
    for figure in choice.figures:
        if figure.name == wanted and figure.refused:
            raise ExportError(f"--attention {wanted}: {figure.refused}")
    return wanted if wanted != "auto" else choice.name


def _example_cells(request: TargetRequest, pipeline: PipelineInfo) -> int:
    """Side of the latents to trace with: what kernels are tuned on, on a GPU; elsewhere less."""
    sides = request.sizes[0] if request.sizes else (pipeline.width, pipeline.height)
    cells = min(sides) // pipeline.vae_scale_factor
    return cells if request.device.type == "cuda" else min(MOST_EXAMPLE_CELLS, cells)


def _graph(part: str, role: Role, module: Any, cells: int) -> Graph:
    if part.endswith("vae_decoder"):
        return decoder_graph(role, module, cells)
    slots = part.endswith("slots")
    return unet_graph(role, deepcopy(module) if slots else module, cells, slots=slots)
