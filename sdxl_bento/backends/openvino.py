"""Graphs that OpenVINO runs on a CPU.

Tensors are shared with torch both ways; nothing is copied.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from sdxl_bento.backends.derived import derived_files
from sdxl_bento.backends.parts import Part, PartOptions, register
from sdxl_bento.engine.executor import DeviceOutOfMemory
from sdxl_bento.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(f"bentoml.{__name__}")
GROUP_SIZE: Final = 32  # numbers of a row that share a scale


def versions() -> dict[str, str]:
    """What a graph is bound to."""
    return {"openvino": version("openvino")}


def weights_of(path: Path) -> Path:
    """The file of weights of a graph; a UNet and its variant with slots have the same."""
    return path.with_name(f"{path.stem.removesuffix('_slots')}.bin")


@register("openvino", versions)
def load(path: Path, options: PartOptions) -> Part:
    """Compile the graph at `path` for this machine's CPU, or take it from the cache.

    Raises:
        ConfigurationError: the package or a file is missing, the device is not a CPU, or OpenVINO
            cannot read the graph.
    """
    return OpenVinoPart(path, options)


class OpenVinoPart:
    """One graph, and one request of it: a part is called by one thread at a time."""

    def __init__(self, path: Path, options: PartOptions) -> None:
        core = the_core()
        if options.device.type != "cpu":
            raise ConfigurationError(
                f"backend openvino runs on the CPU, SDXL_DEVICE is {options.device}; "
                "set SDXL_DEVICE=cpu, or SDXL_BACKEND to another backend"
            )
        weights = weights_of(path)
        for file in (path, weights):
            if not file.is_file():
                raise ConfigurationError(f"{file}: no such file; export the model again")
        chosen = settings(core, options, weights)
        folder = chosen.get("CACHE_DIR")
        try:
            with (
                derived_files(Path(folder), verify=options.verify)
                if folder is not None
                else nullcontext(),
            ):
                model = core.read_model(path, weights)
                self._compiled: Any = core.compile_model(model, "CPU", chosen)
                self._request: Any = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise ConfigurationError(f"{path}: OpenVINO cannot load it: {error}") from error
        self._dtypes = {port.any_name: _torch_dtype(port) for port in self._compiled.inputs}

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        arrays = {
            name: inputs[name].detach().to("cpu", dtype).contiguous().numpy()
            for name, dtype in self._dtypes.items()
        }
        try:
            results = self._request.infer(arrays, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            # It raises RuntimeError for everything: only the message tells a lack of memory.
            short = "alloc" in str(error).lower()
            raised = DeviceOutOfMemory if short else RuntimeError
            raise raised(f"OpenVINO: {error}") from error
        output: torch.Tensor = torch.from_numpy(results[0])
        return output

    def unload(self) -> None:
        self._request = self._compiled = None


@cache
def the_core() -> Any:
    """OpenVINO's core, one for the whole process.

    Its plugin for the CPU gives the thread that has made it another stack for signal handlers
    (sigaltstack(2)), and puts the one of before back at its end. Of two plugins that end in the
    order in which they were made, the stack of the first would be left to the thread after it was
    freed, and the next signal would end the process: Ctrl-C during an export, for example.

    Raises:
        ConfigurationError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def settings(core: Any, options: PartOptions, weights: Path) -> dict[str, Any]:
    """OpenVINO's properties for one part, whose file of weights is `weights`.

    bfloat16 only where the CPU multiplies it by instructions of its own: elsewhere it is slower
    than float32, and OpenVINO takes float32 by itself.
    """
    import torch

    dtype = options.info.dtype
    if dtype == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        log.warning("this CPU has no bfloat16 instructions: OpenVINO computes in float32")
        dtype = "fp32"
    chosen: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads or torch.get_num_threads(),
        # Several workers would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # Kernels are made for each shape of each layer, and OpenVINO would keep 5,000 of them: a
        # gigabyte for each graph of a tiny UNet, once enough sizes have been asked for.
        "CPU_RUNTIME_CACHE_CAPACITY": options.kernels,
        # Linear layers whose weights are int8 quantize their inputs in groups; 0: they do not.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP_SIZE if options.info.quantization == "int8" else 0,
    }
    if options.cache is not None and os.access(options.cache, os.W_OK):
        chosen["CACHE_DIR"] = str(options.cache)
        # Graphs without weights: those are read from the file that the graphs share, where the
        # cache would hold a copy in float32 for each graph.
        chosen |= {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(weights)}
    return chosen


def import_openvino() -> Any:
    """The package, without what it reports to its makers when it is imported.

    Raises:
        ConfigurationError: it is not installed.
    """
    # With no such module, OpenVINO puts a stub in its place.
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError as error:
        raise ConfigurationError(
            "openvino is not installed; pip install 'sdxl-bento[cpu]'"
        ) from error
    return openvino


def _torch_dtype(port: Any) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(
        torch,
        {"f32": "float32", "i64": "int64", "f16": "float16"}[port.element_type.get_type_name()],
    )
    return dtype
