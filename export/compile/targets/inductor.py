"""Target `inductor`: each part compiled ahead of time by TorchInductor, without its weights.

The package of machine code names the tensors that it needs; the runtime makes them from the
component's safetensors (`sdxl_bento/backends/shared_weights.py`).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.compile.registry import Machine, Target, register
from export.errors import ExportError
from sdxl_bento.backends.inductor import CONSTANTS, INPUTS
from sdxl_bento.backends.shared_weights import Recipe
from sdxl_bento.manifest import Quantization

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from export.compile.options import CompileOptions
    from export.model.graphs import Graph

# How the weights of a quantized layer are stored, by the kind of quantization.
_STORED_AS: Mapping[Quantization, str] = {"int8-weights": "int8", "int8": "int8", "fp8": "fp8"}


def traces(part: str, options: CompileOptions) -> bool:
    """Every part is compiled from its own program."""
    return True


def compile_part(
    graph: Graph, program: ExportedProgram | None, folder: Path, options: CompileOptions
) -> Path:
    """Write the package of one part into `folder`.

    Raises:
        ExportError: there is no C++ compiler, a weight of the graph is not in the component's
            safetensors, or Inductor cannot compile the graph.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    from sdxl_bento.backends.attention import NATIVE, native_kernels

    assert program is not None
    _check_compiler()
    target = folder / f"{graph.part.replace('/', '-')}.pt2"
    if options.device.type == "cuda":
        _channels_last(program)
    recipes = _recipes(program, options)
    config: dict[str, Any] = {
        "aot_inductor.package_constants_in_so": False,
        # They pay off where many files include them; here each graph is one file.
        "aot_inductor.precompile_headers": False,
        "aot_inductor.metadata": {
            INPUTS: json.dumps(_inputs(graph)),
            CONSTANTS: json.dumps(
                {name: dataclasses.asdict(recipe) for name, recipe in recipes.items()}
            ),
        },
        **_settings(options),
    }
    with _scratch(folder) as scratch:
        draft = scratch / target.name
        try:
            with torch.no_grad(), native_kernels(options.attention or NATIVE):
                aoti_compile_and_package(program, package_path=str(draft), inductor_configs=config)
        except Exception as error:
            raise ExportError(f"Inductor cannot compile {graph.part}: {error}") from error
        _check_constants(draft, recipes, graph.part, options.device)
        draft.replace(target)
    return target


def _settings(options: CompileOptions) -> dict[str, Any]:
    """Inductor's settings for the device."""
    from torch._inductor import config

    settings: dict[str, Any] = {}
    if options.device.type == "cuda":
        # Choosing kernels by timing them takes long, but a graph is compiled once and runs often.
        settings |= {
            "max_autotune": True,
            "coordinate_descent_tuning": True,
            "epilogue_fusion": True,
        }
    else:
        # The number of threads of the machine that compiles is not that of the one that serves.
        settings["cpp.dynamic_threads"] = options.threads == 0
        if options.threads:
            settings["cpp.threads"] = options.threads
    if hasattr(config.cpp, "march"):
        # Code must run on any processor with the instruction sets that `cpu_isa` names.
        settings["cpp.march"] = ""
    return settings


def _channels_last(program: ExportedProgram) -> None:
    """Store convolutions' weights in the layout of tensor cores, so that no forward converts."""
    import torch

    for name, tensor in program.state_dict.items():
        if tensor.dim() == 4:
            weight = tensor.detach().contiguous(memory_format=torch.channels_last)
            program.state_dict[name] = torch.nn.Parameter(weight, requires_grad=False)


def _recipes(program: ExportedProgram, options: CompileOptions) -> dict[str, Recipe]:
    """How each weight of the graph is made from the component's safetensors."""
    from safetensors import safe_open

    stored: set[str] = set()
    for path in options.weights.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    tensors = {**program.state_dict, **program.constants}
    return {
        name: _recipe(name, tensor, stored, options)
        for name, tensor in tensors.items()
        if hasattr(tensor, "dtype")
    }


def _recipe(name: str, tensor: torch.Tensor, stored: set[str], options: CompileOptions) -> Recipe:
    import torch

    stored_as = _STORED_AS[options.quantization] if options.quantization else "plain"
    # A graph's module wraps the component, "unet.conv_in.weight", or is a piece of it.
    for full in (name, name.partition(".")[2]):
        key = full.removesuffix("_scale")
        values = "plain"
        if tensor.dtype in (torch.int8, torch.float8_e4m3fn):
            values = stored_as
        elif key != full:
            values = f"{stored_as}-scale"
        keys = _unfused(key)
        if stored.issuperset(keys):
            return Recipe(keys, _name(tensor.dtype), tuple(tensor.shape), tensor.stride(), values)
    raise ExportError(
        f"{options.weights}: the graph's weight {name!r} is not in its safetensors, from which the "
        "compiled part is to read it"
    )


def _unfused(key: str) -> tuple[str, ...]:
    """The stored tensors that diffusers joins in a fused projection (`fuse_qkv_projections`)."""
    for fused, single in {".to_qkv.": "qkv", ".to_kv.": "kv"}.items():
        if fused in key:
            return tuple(key.replace(fused, f".to_{letter}.") for letter in single)
    return (key,)


def _check_constants(
    package: Path, recipes: dict[str, Recipe], part: str, device: torch.device
) -> None:
    """Raise if Inductor made constants of its own: no file has their values when it is loaded."""
    import torch

    loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
    unknown = sorted(set(loader.get_constant_fqns()) - set(recipes))
    if unknown:
        raise ExportError(
            f"Inductor made constants of its own for {part}, which no weight file holds: "
            f"{', '.join(unknown[:4])}"
        )


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ExportError(
            "the target inductor needs a C++ compiler on the machine that exports: install g++ "
            "(Debian: apt-get install g++), or name one in CXX"
        ) from None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for Inductor's caches and drafts. It is in `folder`, which is removed as a whole if
    the process is killed."""
    from torch._inductor.utils import fresh_cache

    with (
        tempfile.TemporaryDirectory(prefix=".inductor-", dir=folder) as scratch,
        fresh_cache(dir=scratch, delete=False),
    ):
        yield Path(scratch)


def _inputs(graph: Graph) -> list[tuple[str, str, list[int | str]]]:
    """Name, dtype and shape of each input; a dynamic side is its name, such as "rows"."""
    return [
        (
            name,
            _name(x.dtype),
            [_side(graph.dynamic[name].get(i, n)) for i, n in enumerate(x.shape)],
        )
        for name, x in graph.inputs.items()
    ]


def _side(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size.__name__)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _preference(machine: Machine) -> int:
    """The fastest on a GPU; on a CPU it compiles for minutes."""
    return 1 if machine.cuda else 0


register(
    Target(
        name="inductor",
        summary="TorchInductor packages of machine code",
        devices=("cuda", "cpu"),
        quantizations=tuple(_STORED_AS),
        compile_part=compile_part,
        traces=traces,
        packages=("torch",),
        preference=_preference,
        quantizes_module=True,
        prefers_attention=True,
    )
)
