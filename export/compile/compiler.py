"""Compile a written model for one target, part by part; choose the eager model's attention."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console

from export.check.parity import pick_vae_dtype
from export.compile.onnx_graph.static import Ranges
from export.compile.options import CompileOptions
from export.compile.targets import TargetRequest
from export.errors import ExportError
from export.model.components import DTYPES, component_of, load_component, load_shapes
from export.model.graphs import Graph, decoder_graph, unet_example, unet_graph
from export.model.layout import Role
from export.progress import Progress
from sdxl_bento.manifest import BackendInfo, PipelineInfo, WeightDtype

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
    """Compile UNets and VAE decoders of the written model in `folder`.

    `attention` names the kernels of PyTorch that compiled attention is to prefer; `graphs` is the
    folder of a backend whose ONNX graphs are to be converted, where there is one; `ranges` are for
    static quantization. Returns what the manifest is to say of the backend; it has not been
    verified yet.

    Raises:
        ExportError: it cannot be compiled here.
    """
    began = time.perf_counter()
    info = request.info()
    target = folder / "compiled" / info.label
    target.mkdir(parents=True)
    with progress.stage("Choose the dtype of the VAE"):
        vae = folder / pipelines["base"].path / "vae"
        vae_dtype = pick_vae_dtype(vae, info.dtype or "fp32", request.device)
    jobs = [
        _Job(
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
            for job in jobs:
                artifacts |= _compile(job, _silent())
    elif len(jobs) > 1 and request.target.in_parallel and (os.cpu_count() or 1) > 1:
        with progress.stage(together):
            for written in _each_in_a_process(jobs):
                artifacts |= written
    else:
        for job in jobs:
            artifacts |= _compile(job, progress)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    changes = {
        "vae_dtype": vae_dtype,
        "attention": attention if info.backend == "inductor" else None,
        "artifacts": artifacts,
        "bytes": size,
        "compile_seconds": round(time.perf_counter() - began, 2),
    }
    return info.model_copy(update=changes)


@dataclass(frozen=True)
class _Job:
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


def _each_in_a_process(jobs: Sequence[_Job]) -> list[dict[str, str]]:
    """Tracing is Python's work, of one core; whatever ends this ends the processes too."""
    with get_context("spawn").Pool(len(jobs)) as pool:  # terminated on the way out
        return pool.map_async(_compile_quietly, jobs, chunksize=1).get()


def _compile_quietly(job: _Job) -> dict[str, str]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    return _compile(job, _silent())


def _silent() -> Progress:
    return Progress(Console(quiet=True))


def _compile(job: _Job, progress: Progress) -> dict[str, str]:
    """Compile the parts of one pipeline; their files by part, below the model's folder."""
    info, compiler = job.info, job.request.target.compiler
    written: dict[str, Path] = {}
    if info.exporter == "optimum":
        from export.compile.optimum import export_parts

        with progress.stage(f"Let optimum export the {job.role} model"):
            written = export_parts(job.folder, job.role, job.target, job.options("unet"))
    else:
        originals = _Originals(job)
        for part in parts_of(job.role):
            with progress.stage(f"Compile {part} for {info.label}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of compilers' own making: nothing to act on
                options = job.options(component_of(part))
                traced = compiler.traces(part, options)
                module = originals.get(part) if traced else load_shapes(options.weights)
                graph = _graph(part, job.role, module, _example_cells(job.request, job.pipeline))
                program = graph.trace() if traced else None
                written[part] = compiler.compile_part(graph, program, job.target, options)
    return {part: path.relative_to(job.folder).as_posix() for part, path in written.items()}


class _Originals:
    """The components of a pipeline, each read once and let go of when the next one is asked for.

    A UNet serves its variant with slots after it, which leaves hooks on its layers.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._have: tuple[str, Any] | None = None

    def get(self, part: str) -> Any:
        component = component_of(part)
        if self._have is None or self._have[0] != component:
            self._have = None
            self._have = component, self._read(component)
        return self._have[1]

    def _read(self, component: str) -> Any:
        job, options = self._job, self._job.options(component)
        target, quantization = job.request.target, job.info.quantization
        dtype = options.vae_dtype if component == "vae" else options.dtype
        if target.float32_graph:
            dtype = "fp32"
        module = load_component(options.weights, DTYPES[dtype], options.device)
        if target.quantizes_module and component == "unet" and quantization is not None:
            from sdxl_bento.backends.quantized import quantize_unet

            quantize_unet(module, quantization)
        return module


def parts_of(role: Role) -> tuple[str, ...]:
    """What is compiled of a pipeline. Adapters are for the base model."""
    names = ("unet", "unet_slots", "vae_decoder") if role == "base" else ("unet", "vae_decoder")
    return tuple(f"{role}/{name}" for name in names)


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
    from export.compile.attention import pick_attention
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
    return unet_graph(role, module, cells, slots=part.endswith("slots"))
