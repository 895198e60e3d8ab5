"""The targets a model can be compiled for, and how one of them is compiled, part by part."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from export.components import DTYPES, component_of, load_component
from export.errors import ExportError
from export.graphs import Graph, decoder_graph, unet_example, unet_graph
from export.layout import Role
from export.options import CompileOptions
from export.parity import pick_vae_dtype
from export.progress import Progress
from sdxl_bento.backends.choose import device_name, runtime
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import (
    BackendInfo,
    BackendName,
    PipelineInfo,
    Quantization,
    Size,
    WeightDtype,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MOST_EXAMPLE_CELLS = 32  # side of the latents that a graph is traced with


class Compiler(Protocol):
    """What the module of a target offers."""

    def traces(self, part: str) -> bool:
        """Whether a part is made from a program; one that is not is given None."""
        ...

    def compile_part(
        self, graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
    ) -> Path:
        """Write the artifact of one part into `folder`; returns its file."""
        ...


@dataclass(frozen=True)
class Target:
    """A compiler, and what it works on.

    `devices`: those that it compiles for, the first that is there. `float32_graph`: its graph is
    float32 whatever it computes in. `quantizes_module`: low-bit layers are put into the module
    before it is traced, and not by the compiler.
    """

    name: BackendName
    devices: tuple[str, ...]
    float32_graph: bool = False
    quantizes_module: bool = False

    @property
    def compiler(self) -> Compiler:
        """The module; its packages are imported when it compiles."""
        return cast(Compiler, importlib.import_module(f"export.{self.name}"))


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("inductor", ("cuda", "cpu"), quantizes_module=True),
        Target("onnx", ("cuda", "cpu")),
        Target("tensorrt", ("cuda",)),
        Target("openvino", ("cpu",), float32_graph=True),
    )
}


@dataclass(frozen=True)
class TargetRequest:
    """One target as the caller asked for it. None and empty: the target's own choice."""

    target: Target
    dtype: WeightDtype | None = None
    quantization: Quantization | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    rows: tuple[int, ...] = ()
    threads: int = 0

    @property
    def device(self) -> torch.device:
        """Where it is compiled and run.

        Raises:
            ExportError: this machine has no such device.
        """
        for name in self.target.devices:
            if name == "cpu" or torch.cuda.is_available():
                return torch.device(name)
        raise ExportError(f"--target {self.target.name}: needs a CUDA device, and torch finds none")

    def info(self) -> BackendInfo:
        """What the manifest will say of it, as far as it is known before.

        Raises:
            ExportError: this machine lacks a device or a package for it.
        """
        try:
            versions = runtime(self.target.name).versions()
        except ImportError as error:
            raise ExportError(
                f"--target {self.target.name}: the package {error.name} is not installed; "
                "the extras cpu and gpu of sdxl-bento bring what each needs"
            ) from None
        except ConfigurationError as error:
            raise ExportError(f"--target {self.target.name}: {error}") from None
        return BackendInfo(
            backend=self.target.name,
            device=device_name(self.device),
            versions=versions,
            dtype=self.dtype or self._default_dtype(),
            quantization=self.quantization,
            adapters="slots",
            sizes=tuple(Size(width=width, height=height) for width, height in self.sizes),
            rows=self.rows,
        )

    def _default_dtype(self) -> WeightDtype:
        if self.device.type == "cuda":
            return "fp16"
        return "bf16" if self.target.float32_graph and has_bf16() else "fp32"


def parse_targets(
    text: str,
    *,
    dtype: WeightDtype | None = None,
    quantization: Quantization | None = None,
    sizes: str = "",
    rows: str = "",
) -> tuple[TargetRequest, ...]:
    """The targets of a command line: names with commas, `auto`, or `eager` for none.

    Raises:
        ExportError: a name, a size or a number of rows that there is not.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*TARGETS, "auto", "eager")]
    if unknown:
        raise ExportError(
            f"--target {unknown[0]!r}: there are {', '.join(('eager', *TARGETS))} and auto"
        )
    chosen = dict.fromkeys(_auto() if name == "auto" else name for name in names)
    return tuple(
        TargetRequest(TARGETS[name], dtype, quantization, _sizes(sizes), _rows(rows))
        for name in chosen
        if name != "eager"
    )


def _auto() -> str:
    """What suits this machine: compiled kernels on a GPU; on a CPU what is ready the soonest."""
    if torch.cuda.is_available():
        return "inductor"
    return next((name for name in ("openvino", "onnx") if _installed(name)), "eager")


def _installed(target: str) -> bool:
    """Whether the packages that compile for it are here."""
    needed = {"openvino": ("onnx", "onnxscript", "openvino"),
              "onnx": ("onnx", "onnxscript", "onnxruntime")}[target]  # fmt: skip
    return all(importlib.util.find_spec(package) is not None for package in needed)


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    sizes = []
    for item in filter(None, map(str.strip, text.split(","))):
        width, times, height = item.lower().partition("x")
        if not times or not width.isdecimal() or not height.isdecimal():
            raise ExportError(f"--sizes {item!r}: width x height in pixels, as 1024x1024")
        sizes.append((int(width), int(height)))
    return tuple(dict.fromkeys(sizes))


def _rows(text: str) -> tuple[int, ...]:
    items = list(filter(None, map(str.strip, text.split(","))))
    wrong = [item for item in items if not item.isdecimal() or not 1 <= int(item) <= MOST_ROWS]
    if wrong:
        raise ExportError(f"--rows {wrong[0]!r}: whole numbers from 1 to {MOST_ROWS}")
    return tuple(sorted({int(item) for item in items}))


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by instructions of its own."""
    return torch.cpu._is_avx512_bf16_supported()


def compile_target(
    request: TargetRequest,
    folder: Path,
    pipelines: Mapping[Role, PipelineInfo],
    progress: Progress,
) -> BackendInfo:
    """Compile UNets and VAE decoders of the written model in `folder`.

    Returns what the manifest is to say of it; it has not been verified yet.

    Raises:
        ExportError: it cannot be compiled here.
    """
    began = time.perf_counter()
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
        for part in parts_of(role):
            with progress.stage(f"Compile {part} for {info.label}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of compilers' own making: nothing to act on
                options = _options(request, info, vae_dtype, root / component_of(part))
                module = _load(request, part, options)
                if request.target.quantizes_module and component_of(part) == "unet":
                    _quantize(module, info)
                graph = _graph(part, role, module, pipeline)
                program = graph.trace() if compiler.traces(part) else None
                path = compiler.compile_part(graph, program, target, options)
                artifacts[part] = path.relative_to(folder).as_posix()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    changes = {
        "vae_dtype": vae_dtype,
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
    request: TargetRequest, info: BackendInfo, vae_dtype: WeightDtype, weights: Path
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


def _graph(part: str, role: Role, module: Any, pipeline: PipelineInfo) -> Graph:
    cells = min(MOST_EXAMPLE_CELLS, pipeline.width // pipeline.vae_scale_factor)
    if part.endswith("vae_decoder"):
        return decoder_graph(role, module, cells)
    slots = part.endswith("slots")
    return unet_graph(role, deepcopy(module) if slots else module, cells, slots=slots)
