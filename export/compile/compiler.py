"""Compile a written model for one target, part by part."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from export.check.decoder_dtype import pick_vae_dtype
from export.compile.onnx_graph.static import Ranges
from export.compile.options import CompileOptions
from export.compile.requests import TargetRequest
from export.errors import ExportError
from export.model.components import load_component, load_shapes
from export.model.graphs import Graph, decoder_graph, unet_graph
from export.model.parts import component_of, has_slots, is_decoder, parts_of
from export.progress import Progress
from sdxl_bento.dtypes import torch_dtype
from sdxl_bento.manifest import BackendInfo, PipelineInfo, Role, WeightDtype

MOST_EXAMPLE_CELLS = 32  # side of the latents that a graph is traced with


def compile_target(
    request: TargetRequest,
    folder: Path,
    pipelines: Mapping[Role, PipelineInfo],
    attention: str | None,
    progress: Progress,
    graphs: Path | None = None,
    ranges: Mapping[Role, Ranges] = MappingProxyType({}),
) -> BackendInfo:
    """Compile the UNets and VAE decoders of a written model; they are not verified.

    Args:
        request: the target with its options.
        folder: of the model; artifacts are written below `compiled/`.
        pipelines: of the model, by role.
        attention: the attention kernels of PyTorch that the eager model runs with, which compiled
            attention is to prefer too; None leaves the choice to PyTorch.
        progress: where stages are reported.
        graphs: a folder of ONNX graphs to convert, for a target that is made from such; None
            traces the model.
        ranges: of the UNets' layers, for static quantization.

    Returns:
        The manifest's entry of the backend.

    Raises:
        ExportError: the model cannot be compiled on this machine.
    """
    began = time.perf_counter()
    info = request.info()
    target = folder / "compiled" / info.label
    target.mkdir(parents=True)
    with progress.stage("Choose the dtype of the VAE"):
        vae = folder / pipelines["base"].path / "vae"
        vae_dtype = pick_vae_dtype(vae, info.dtype or "fp32", request.device)
    builds = [
        _Build(
            request,
            info,
            vae_dtype,
            attention,
            folder,
            role,
            pipeline,
            graphs,
            ranges.get(role),
        )
        for role, pipeline in pipelines.items()
    ]
    artifacts: dict[str, str] = {}
    together = f"Compile {' and '.join(pipelines)} for {info.label}"
    if graphs:
        with progress.stage(f"{together} from the graphs of {graphs.name}"):
            for build in builds:
                artifacts |= _compile(build, _silent())
    elif len(builds) > 1 and request.target.in_parallel and (os.cpu_count() or 1) > 1:
        with progress.stage(together):
            for written in _each_in_a_process(builds):
                artifacts |= written
    else:
        for build in builds:
            artifacts |= _compile(build, progress)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    changes = {
        "vae_dtype": vae_dtype,
        "attention": attention if request.target.prefers_attention else None,
        "artifacts": artifacts,
        "bytes": size,
        "compile_seconds": round(time.perf_counter() - began, 2),
    }
    return info.model_copy(update=changes)


@dataclass(frozen=True)
class _Build:
    """One pipeline to compile for one target."""

    request: TargetRequest
    info: BackendInfo
    vae_dtype: WeightDtype
    attention: str | None
    folder: Path
    role: Role
    pipeline: PipelineInfo
    graphs: Path | None
    ranges: Ranges | None

    @property
    def target(self) -> Path:
        return self.folder / "compiled" / self.info.label

    def options(self, component: str) -> CompileOptions:
        return CompileOptions(
            device=self.request.device,
            dtype=self.info.dtype or "fp32",
            vae_dtype=self.vae_dtype,
            weights=self.folder / self.pipeline.path / component,
            sizes=self.request.sizes,
            rows=self.request.rows,
            quantization=self.info.quantization,
            threads=self.request.threads,
            attention=self.attention,
            graphs=self.graphs,
            ranges=self.ranges,
        )


def _each_in_a_process(builds: Sequence[_Build]) -> list[dict[str, str]]:
    """Compile each pipeline in a process of its own, since tracing keeps one core busy.

    They are terminated if this function is left by an error or an interrupt.

    Raises:
        ExportError: the model cannot be compiled, or one of the processes was killed.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(len(builds), get_context("spawn"), _ignore_interrupts)
    try:
        return list(pool.map(_compile_quietly, builds))
    except BaseException as error:
        for process in set(active_children()) - others:
            process.terminate()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise ExportError(
            "a process that compiled the model was killed, most likely because the machine ran out "
            "of memory; free some, or export on a larger machine"
        ) from None
    finally:
        pool.shutdown()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles them


def _compile_quietly(build: _Build) -> dict[str, str]:
    return _compile(build, _silent())


def _silent() -> Progress:
    return Progress(Console(quiet=True))


def _compile(build: _Build, progress: Progress) -> dict[str, str]:
    """Compile the parts of one pipeline; returns their files by part, below the model's folder."""
    if build.info.exporter == "optimum":
        from export.compile.optimum import export_parts

        with progress.stage(f"Let optimum export the {build.role} model"):
            written = export_parts(build.folder, build.role, build.target, build.options("unet"))
    else:
        originals = _Originals(build)
        written = {
            part: _compile_part(part, build, originals, progress) for part in parts_of(build.role)
        }
    return {part: path.relative_to(build.folder).as_posix() for part, path in written.items()}


def _compile_part(part: str, build: _Build, originals: _Originals, progress: Progress) -> Path:
    target, options = build.request.target, build.options(component_of(part))
    with progress.stage(f"Compile {part} for {build.info.label}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers warn of their own code, not of the model
        traced = target.traces(part, options)
        module = originals.get(part) if traced else load_shapes(options.weights)
        graph = _graph(part, build.role, module, _example_cells(build.request, build.pipeline))
        program = graph.trace() if traced else None
        return target.compile_part(graph, program, build.target, options)


class _Originals:
    """The components of a pipeline. One is held at a time; asking for another one releases it.

    A UNet is read once for its plain graph and for the one with slots, which must come second
    because it leaves hooks on the layers.
    """

    def __init__(self, build: _Build) -> None:
        self._build = build
        self._held: tuple[str, Any] | None = None

    def get(self, part: str) -> Any:
        component = component_of(part)
        if self._held is None or self._held[0] != component:
            self._held = None
            self._held = component, self._read(component)
        return self._held[1]

    def _read(self, component: str) -> Any:
        build, options = self._build, self._build.options(component)
        target, quantization = build.request.target, build.info.quantization
        dtype = options.vae_dtype if component == "vae" else options.dtype
        if target.float32_graph:
            dtype = "fp32"
        module = load_component(options.weights, torch_dtype(dtype), options.device)
        if target.quantizes_module and component == "unet" and quantization is not None:
            from sdxl_bento.backends.quantized import quantize_unet

            quantize_unet(module, quantization)
        return module


def _example_cells(request: TargetRequest, pipeline: PipelineInfo) -> int:
    """Side of the latents to trace with. On a GPU kernels are tuned for them; a CPU needs fewer."""
    sides = request.sizes[0] if request.sizes else (pipeline.width, pipeline.height)
    cells = min(sides) // pipeline.vae_scale_factor
    return cells if request.device.type == "cuda" else min(MOST_EXAMPLE_CELLS, cells)


def _graph(part: str, role: Role, module: Any, cells: int) -> Graph:
    if is_decoder(part):
        return decoder_graph(role, module, cells)
    return unet_graph(role, module, cells, slots=has_slots(part))
