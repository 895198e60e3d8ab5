"""The description of a target, and where targets register themselves.

A target is a module of `export.compile.targets`, which ends with `register(Target(...))`. The
other half of it, the runtime that loads the compiled parts, is in `sdxl_bento.backends`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

from sdxl_bento.manifest import BackendName, Exporter, Quantization

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph


class CompilePart(Protocol):
    """Compiles one part of a model."""

    def __call__(
        self, graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
    ) -> Path:
        """Write the artifact of one part into `folder`.

        Args:
            graph: the part's module with example inputs and dynamic sides.
            program: the traced graph; None where the target does not need it (`Target.traces`).
            folder: exists, and holds the parts that were compiled before.
            options: of the backend.

        Returns:
            The file to load.

        Raises:
            ExportError: the part cannot be compiled.
        """
        ...


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that decide what `--target auto` chooses."""

    cuda: bool
    bf16: bool  # whether the CPU has instructions for bfloat16


def never(_: Machine) -> int:
    """The preference of a target that `--target auto` does not choose."""
    return 0


@dataclass(frozen=True)
class Target:
    """One target, as its module describes it. It is pickled for the processes that compile.

    Attributes:
        name: of the backend in manifests.
        summary: what it is, for the command line's help.
        devices: types of device that it compiles for; the first that the machine has is taken.
        quantizations: kinds of low-bit weights that it offers.
        compile_part: compiles one part.
        traces: whether `compile_part` needs the traced program of a part. Tracing takes long, so
            a target that derives a part from another one says no.
        packages: modules that must be installed to compile.
        preference: how well the target suits a machine; `--target auto` takes the highest one
            whose packages are installed. 0: never chosen.
        exporters: programs that can write its graphs.
        float32_graph: its graph is float32 whatever dtype it computes in.
        quantizes_module: low-bit layers are put into the module before it is traced, instead of
            into the compiled graph.
        in_parallel: base and refiner are compiled at the same time, each in its own process.
        prefers_attention: it compiles PyTorch's attention, and can prefer one of its kernels.
        made_from: the target whose graphs it can convert instead of tracing again.
        convertible: for each quantization that can be made from such graphs, the quantization
            that they must have. None stands for unquantized graphs.
    """

    name: BackendName
    summary: str
    devices: tuple[str, ...]
    quantizations: tuple[Quantization, ...]
    compile_part: CompilePart
    traces: Callable[[str, CompileOptions], bool]
    packages: tuple[str, ...]
    preference: Callable[[Machine], int] = never
    exporters: tuple[Exporter, ...] = ("torch",)
    float32_graph: bool = False
    quantizes_module: bool = False
    in_parallel: bool = False
    prefers_attention: bool = False
    made_from: BackendName | None = None
    convertible: Mapping[Quantization | None, Quantization | None] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        """Whether the packages that compile for it are installed."""
        return all(importlib.util.find_spec(package) is not None for package in self.packages)


_targets: dict[BackendName, Target] = {}


def register(target: Target) -> None:
    """Add a target to those that a model can be compiled for.

    Raises:
        ValueError: there is another one of that name.
    """
    if target.name in _targets:
        raise ValueError(f"two targets are named {target.name!r}")
    _targets[target.name] = target


def registered() -> Mapping[BackendName, Target]:
    """The targets whose modules have been imported, in the order of `BackendName`."""
    return {name: _targets[name] for name in get_args(BackendName) if name in _targets}
