"""What a command line asks to be compiled: targets with their options.

Importing this module does not import torch, so that an export with nothing to do ends at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.compile.registry import Machine, Target
from export.compile.targets import all_targets
from export.errors import ExportError
from sdxl_bento.backends.choose import device_name, runtime
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo, Exporter, Quantization, Size, WeightDtype

if TYPE_CHECKING:
    import torch

PICTURES = 4  # that a target draws to be verified, unless told otherwise
EAGER, AUTO = "eager", "auto"  # accepted in place of a target's name


@dataclass(frozen=True)
class TargetRequest:
    """One target with the caller's options; None and empty leave the choice to the target."""

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
        """The manifest's entry of the backend, without what compiling it will add.

        Raises:
            ExportError: this machine lacks a device or a package that the target needs.
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
    known = all_targets()
    unknown = [name for name in names if name not in (*known, AUTO, EAGER)]
    if unknown:
        raise ExportError(
            f"--target {unknown[0]!r}: there are {', '.join((EAGER, *known))} and {AUTO}"
        )
    wanted = dict.fromkeys(_auto() if name == AUTO else name for name in names)
    chosen = [target for name in wanted for target in known.values() if target.name == name]
    for target in chosen:
        if exporter not in target.exporters:
            able = [other.name for other in known.values() if exporter in other.exporters]
            raise ExportError(
                f"--exporter {exporter}: writes for the target {' and '.join(able)}, "
                f"not {target.name}"
            )
        if quantization and quantization not in target.quantizations:
            kinds = " and ".join(target.quantizations) or "none"
            raise ExportError(f"--quantize {quantization}: for {target.name} there is {kinds}")
    return tuple(
        TargetRequest(target, dtype, quantization, _sizes(sizes), _rows(rows), exporter=exporter)
        for target in chosen
    )


def _auto() -> str:
    """The target that suits this machine best and can be compiled on it; else `EAGER`."""
    import torch

    machine = Machine(cuda=torch.cuda.is_available(), bf16=has_bf16())
    able = [target for target in all_targets().values() if target.installed]
    best = max(able, key=lambda target: target.preference(machine), default=None)
    return best.name if best is not None and best.preference(machine) > 0 else EAGER


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
    """Whether the graphs of a compiled backend are those that `request` would have traced."""
    target = request.target
    return (
        request.quantization in target.convertible
        and info.backend == target.made_from
        and info.device == device_name(request.device)
        and (info.dtype, info.vae_dtype) == ("fp32", "fp32")
        and info.quantization == target.convertible[request.quantization]
        and info.exporter == request.exporter
    )


def same_build(info: BackendInfo, wanted: BackendInfo) -> bool:
    """Whether a compiled backend was built as `wanted` describes. Measurements are ignored."""
    fields = ("backend", "device", "versions", "dtype", "quantization", "sizes", "rows", "exporter")
    return all(getattr(info, name) == getattr(wanted, name) for name in fields)
