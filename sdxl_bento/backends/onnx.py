"""ONNX graphs by ONNX Runtime, on the CPU or on CUDA.

Tensors are handed over by pointer both ways: on CUDA nothing goes through the host, on the CPU
nothing is copied that has the graph's dtype already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sdxl_bento.backends.parts import Part, PartOptions, register
from sdxl_bento.engine.executor import DeviceOutOfMemory
from sdxl_bento.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

Provider = tuple[str, dict[str, str]]
# ONNX's element types: torch's name, and the number that ONNX has for it.
_TYPES: Final = {
    "tensor(float)": ("float32", 1),
    "tensor(float16)": ("float16", 10),
    "tensor(bfloat16)": ("bfloat16", 16),
    "tensor(int64)": ("int64", 7),
}
_MEMORY_SIGNS: Final = ("failed to allocate", "bad_alloc", "out of memory")


def versions() -> dict[str, str]:
    """What a graph is bound to."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


@register("onnx", versions)
def load(path: Path, options: PartOptions) -> Part:
    """A session of ONNX Runtime for the graph at `path`.

    Raises:
        ConfigurationError: the package, the provider for the device or the file is missing, or the
            graph cannot be loaded.
    """
    if options.device.type == "cpu":
        return CpuPart(path, options, [("CPUExecutionProvider", {})])
    check_providers("CUDAExecutionProvider")
    import torch

    stream = torch.cuda.Stream(options.device)  # type: ignore[no-untyped-call]
    return CudaPart(path, options, [cuda_provider(options.device, stream)], stream)


def cuda_provider(device: torch.device, stream: torch.cuda.Stream) -> Provider:
    """CUDA on a stream of torch's making, so that no work waits for the other's on the host."""
    return "CUDAExecutionProvider", {
        "device_id": str(device.index or 0),
        "user_compute_stream": str(stream.cuda_stream),
        # By what is needed, not by doubling: torch holds the rest of the memory.
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }


class OnnxPart:
    """One graph in a session; how tensors get in and out is the device's."""

    def __init__(self, path: Path, options: PartOptions, providers: Sequence[Provider]) -> None:
        import torch

        ort = _onnxruntime()
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file; export the model again")
        try:
            self._session: Any = ort.InferenceSession(
                str(path), _session_options(ort, options), providers=list(providers)
            )
        except Exception as error:  # its own classes derive from Exception alone
            raise ConfigurationError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self._device = options.device
        self._inputs = [
            (argument.name, getattr(torch, _TYPES[argument.type][0]), _TYPES[argument.type][1])
            for argument in self._session.get_inputs()
        ]
        self._output: str = self._session.get_outputs()[0].name

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ready = {
            name: inputs[name].detach().to(self._device, dtype).contiguous()
            for name, dtype, _ in self._inputs
        }
        try:
            return self._run(ready)
        except Exception as error:  # its own classes derive from Exception alone
            # It has no class for a lack of memory: only the message tells.
            short = any(sign in str(error).lower() for sign in _MEMORY_SIGNS)
            raised = DeviceOutOfMemory if short else RuntimeError
            raise raised(f"ONNX Runtime: {error}") from error

    def unload(self) -> None:
        self._session = None

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


class CpuPart(OnnxPart):
    """numpy arrays over torch's memory in, a tensor over ONNX Runtime's memory out."""

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        output: torch.Tensor = torch.from_numpy(self._session.run([self._output], arrays)[0])
        return output


class CudaPart(OnnxPart):
    """Pointers in, DLPack out. The two libraries order their work by events on the device.

    torch's usual stream is number 0, which ONNX Runtime takes for none at all, so it gets another
    one, and each waits for the other's there.
    """

    def __init__(
        self,
        path: Path,
        options: PartOptions,
        providers: Sequence[Provider],
        stream: torch.cuda.Stream,
    ) -> None:
        super().__init__(path, options, providers)
        self._stream = stream
        self._run_options: Any = _onnxruntime().RunOptions()
        # Otherwise the host would wait at the end of each run.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        index = self._device.index or 0
        binding = self._session.io_binding()
        for name, _, number in self._inputs:
            tensor = inputs[name]
            tensor.record_stream(self._stream)
            binding.bind_input(name, "cuda", index, number, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(self._output, "cuda", index)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        self._session.run_with_iobinding(binding, self._run_options)
        current.wait_stream(self._stream)
        output: torch.Tensor = torch.utils.dlpack.from_dlpack(binding.get_outputs()[0])
        return output


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            "onnxruntime is not installed; pip install 'sdxl-bento[cpu]', or [gpu] for CUDA"
        ) from error
    return onnxruntime


def available_providers() -> list[str]:
    """The execution providers of the installed build."""
    names: list[str] = _onnxruntime().get_available_providers()
    return names


def check_providers(*names: str) -> None:
    """Raise `ConfigurationError` where ONNX Runtime would quietly take the CPU instead."""
    available = available_providers()
    missing = [name for name in names if name not in available]
    if missing:
        raise ConfigurationError(
            f"this build of ONNX Runtime has no {missing[0]} (it has {', '.join(available)}); "
            "put onnxruntime-gpu in its place: pip uninstall onnxruntime, then "
            "pip install 'sdxl-bento[gpu]'"
        )


def _session_options(ort: Any, options: PartOptions) -> Any:
    import torch

    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = options.threads or torch.get_num_threads()
    # Threads that spin between operators take the cores of the other workers.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings
