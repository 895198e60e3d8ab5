"""Graphs that TorchInductor compiled ahead of time (AOTInductor, `.pt2`).

A package holds machine code and no weights: those come from the component's safetensors, one set
for all graphs of a component. It is bound to the version of torch, and to the instruction set of
the CPU or the architecture of the GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sdxl_bento.backends.parts import Part, PartOptions, register
from sdxl_bento.backends.shared_weights import Recipe, shared
from sdxl_bento.engine.executor import DeviceOutOfMemory
from sdxl_bento.errors import ArtifactMismatch, ConfigurationError

if TYPE_CHECKING:
    import torch

# Keys of a package's metadata, each a JSON document.
INPUTS: Final = "sdxl_bento_signature"  # an array of `Input`'s fields, in the order of the call
CONSTANTS: Final = "sdxl_bento_constants"  # name -> the fields of a `Recipe`
ALIGNMENT: Final = 16  # bytes, what compiled kernels take for granted of their inputs


def versions() -> dict[str, str]:
    """What a package is bound to: torch, and what the CPU can do."""
    import torch

    return {"torch": torch.__version__, "cpu_isa": cpu_isa()}


def cpu_isa() -> str:
    """The instruction sets that Inductor makes use of and this CPU has.

    Inductor's own `pick_vec_isa` says the same, but compiles a test program to find out, and where
    a model is served there may be no compiler.
    """
    import platform

    import torch

    known = {
        "avx2": torch.cpu._is_avx2_supported,
        "avx512": torch.cpu._is_avx512_supported,
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        "avx512_vnni": torch.cpu._is_vnni_supported,
        "amx_tile": torch.cpu._is_amx_tile_supported,
        "amx_fp16": torch.cpu._is_amx_fp16_supported,
    }
    return " ".join([platform.machine(), *(name for name, has in known.items() if has())])


@register("inductor", versions)
def load(path: Path, options: PartOptions) -> Part:
    """Load the package at `path`; on CUDA, with a CUDA graph for each of its shapes.

    Raises:
        ConfigurationError: the package or a weight is missing, or the package cannot be loaded.
        ArtifactMismatch: it was not written by this project's export, or is for other weights.
    """
    part = InductorPart(path, options)
    shapes = options.info.rows and options.info.sizes
    if options.device.type != "cuda" or not shapes or "sample" not in part.inputs:
        return part  # a decoder's few large kernels leave the host time to launch them
    from sdxl_bento.backends.cuda_graphs import GraphedPart

    return GraphedPart(part, options.info)


class Input(NamedTuple):
    """What a graph takes under a name. A side of its shape is a size, or a name for any size."""

    name: str
    dtype: str
    shape: list[int | str]


def check_shapes(wanted: Sequence[Input], inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for what the compiled code, which checks nothing, would read beyond."""
    sizes: dict[str, int] = {}
    for name, _, shape in wanted:
        actual = tuple(inputs[name].shape)
        known = [
            sizes.setdefault(s, n) if isinstance(s, str) else s
            for s, n in zip(shape, actual, strict=False)
        ]
        if len(actual) != len(shape) or list(actual) != known:
            where = f" where {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else ""
            raise ValueError(
                f"{name} has shape {actual}, not ({', '.join(map(str, shape))}){where}"
            )


class InductorPart:
    """One package with its weights."""

    def __init__(self, path: Path, options: PartOptions) -> None:
        import torch

        self._path, self._device = path, options.device
        self._ooms = _ooms(options.device) if options.device.type == "cuda" else 0
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file; export the model again")
        index = options.device.index if options.device.type == "cuda" else None
        try:
            # What `torch._inductor.aoti_load_package` ends in. That imports the compiler first and
            # compiles a test program: seconds, and a compiler that a server may not have.
            self._loader: Any = torch._C._aoti.AOTIModelPackageLoader(
                str(path), "model", options.device.type == "cuda", 1, -1 if index is None else index
            )
        except RuntimeError as error:
            raise ConfigurationError(f"{path}: cannot be loaded: {error}") from error
        metadata = self._loader.get_metadata()
        if INPUTS not in metadata or CONSTANTS not in metadata:
            raise ArtifactMismatch(f"{path}: not made by this version's export; export it again")
        self._inputs = [Input(*fields) for fields in json.loads(metadata[INPUTS])]
        known = json.loads(metadata[CONSTANTS])
        # Fewer than the graph has: Inductor writes tensors of a few numbers into the code.
        names = self._loader.get_constant_fqns()
        if unknown := sorted(set(names) - set(known)):
            raise ArtifactMismatch(f"{path}: no recipe for its constant {unknown[0]!r}")
        recipes = {name: Recipe.from_json(known[name]) for name in names}
        # `user_managed` takes pointers, so both objects stay with this one.
        self._weights = shared(options.weights, options.device)
        self._constants = self._weights.make(recipes)
        self._loader.load_constants(self._constants, False, True, True)

    @property
    def inputs(self) -> list[str]:
        """Names, in the order of the call."""
        return [each.name for each in self._inputs]

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        check_shapes(self._inputs, inputs)
        ready = [_ready(inputs[i.name].to(getattr(torch, i.dtype))) for i in self._inputs]
        with torch.no_grad():
            try:
                output: torch.Tensor = self._loader.boxed_run(ready)[0]
            except RuntimeError as error:
                if self._ran_out_of_memory():
                    raise DeviceOutOfMemory(f"{self._path.name}: {error}") from error
                raise
        return output

    def _ran_out_of_memory(self) -> bool:
        """What failed inside a package is printed, not raised, so the allocator is asked."""
        if self._device.type != "cuda":
            return False
        before, self._ooms = self._ooms, _ooms(self._device)
        return self._ooms > before

    def unload(self) -> None:
        self._loader = None
        self._constants = {}
        del self._weights


def _ooms(device: torch.device) -> int:
    """How often the device's allocator has run out of memory."""
    import torch

    count: int = torch.cuda.memory_stats(device).get("num_ooms", 0)
    return count


def _ready(tensor: torch.Tensor) -> torch.Tensor:
    """As the kernels take it for granted: contiguous, and aligned although it may be a slice."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
