"""The targets a model can be compiled for, and what a command line asks of them.

Importing this imports no torch: an export that has nothing to do ends at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from export.errors import ExportError
from sdxl_bento.backends.choose import device_name, runtime
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import (
    BackendInfo,
    BackendName,
    Exporter,
    Quantization,
    Size,
    WeightDtype,
)

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph

PICTURES = 4  # that a target draws to be verified, unless told otherwise


class Compiler(Protocol):
    """What the module of a target offers."""

    def traces(self, part: str, options: CompileOptions) -> bool:
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
    before it is traced, and not by the compiler. `in_parallel`: base and refiner are compiled at
    once, each on a core. `made_from`: the target whose graphs it can take over. `quantizations`:
    the kinds that it has.
    """

    name: BackendName
    devices: tuple[str, ...]
    quantizations: tuple[Quantization, ...]
    float32_graph: bool = False
    quantizes_module: bool = False
    in_parallel: bool = False
    made_from: BackendName | None = None

    @property
    def compiler(self) -> Compiler:
        """The module; its packages are imported when it compiles."""
        return cast(Compiler, importlib.import_module(f"export.compile.{self.name}"))


_INDUCTOR: tuple[Quantization, ...] = ("int8-weights", "int8", "fp8")
_ONNX: tuple[Quantization, ...] = ("int8-weights", "int8", "int8-static")
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("inductor", ("cuda", "cpu"), _INDUCTOR, quantizes_module=True),
        Target("onnx", ("cuda", "cpu"), _ONNX, in_parallel=True),
        Target("tensorrt", ("cuda",), ()),
        Target("openvino", ("cpu",), _ONNX, float32_graph=True, in_parallel=True, made_from="onnx"),
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
    exporter: Exporter = "torch"

    @property
    def device(self) -> torch.device:
        """Where it is compiled and run.

        Raises:
            ExportError: this machine has no such device.
        """
        import torch

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
            exporter=self.exporter,
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
    exporter: Exporter = "torch",
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
    if exporter == "optimum" and (others := chosen.keys() - {"onnx", "eager"}):
        raise ExportError(f"--exporter optimum: writes for the target onnx, not {min(others)}")
    for name in chosen:
        kinds = () if name == "eager" else TARGETS[name].quantizations
        if quantization and name != "eager" and quantization not in kinds:
            raise ExportError(
                f"--quantize {quantization}: for {name} there is {' and '.join(kinds) or 'none'}"
            )
    return tuple(
        TargetRequest(
            TARGETS[name], dtype, quantization, _sizes(sizes), _rows(rows), exporter=exporter
        )
        for name in chosen
        if name != "eager"
    )


def _auto() -> str:
    """What suits this machine: compiled kernels on a GPU; on a CPU what is ready the soonest."""
    import torch

    if torch.cuda.is_available():
        return "inductor"
    # With bfloat16 OpenVINO is the fastest by far; without, ONNX Runtime is no slower on small
    # models, and sooner ready.
    order = ("openvino", "onnx") if has_bf16() else ("onnx", "openvino")
    return next((name for name in order if _installed(name)), "eager")


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
    import torch

    return torch.cpu._is_avx512_bf16_supported()


def has_graphs_for(info: BackendInfo, request: TargetRequest) -> bool:
    """Whether a compiled backend's ONNX graphs are those that `request` would have traced."""
    kind = request.quantization
    if kind == "int8-static":  # OpenVINO's graph rounds less
        return False
    if request.target.name == "openvino" and kind == "int8":  # inputs are its runtime's to quantize
        kind = "int8-weights"
    return (
        info.backend == request.target.made_from
        and info.device == device_name(request.device)
        and (info.dtype, info.vae_dtype) == ("fp32", "fp32")
        and (info.quantization, info.exporter) == (kind, request.exporter)
    )


def same_build(info: BackendInfo, wanted: BackendInfo) -> bool:
    """Whether a compiled backend is what `wanted` asks for, up to what was measured of it."""
    fields = ("backend", "device", "versions", "dtype", "quantization", "sizes", "rows", "exporter")
    return all(getattr(info, name) == getattr(wanted, name) for name in fields)
