"""ONNX graphs by ONNX Runtime's TensorRT provider, with engines that the export has built.

An engine has one profile, for a range of shapes. What TensorRT has no operator for, the CUDA
provider runs. Options: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sdxl_bento.backends.derived import derived_files
from sdxl_bento.backends.onnx import CudaPart, Provider, check_providers, cuda_provider
from sdxl_bento.backends.parts import Part, PartOptions, register
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import ENGINES as ENGINES  # re-exported

if TYPE_CHECKING:
    import torch

log = logging.getLogger(f"bentoml.{__name__}")
# The smallest, the usual and the largest shape of an input, in one profile.
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Profile = Mapping[str, Range]
_PACKAGES: Final = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


def versions() -> dict[str, str]:
    """What an engine is bound to."""
    import onnxruntime

    bound_to = {"onnxruntime": onnxruntime.__version__}
    for package in _PACKAGES:
        try:
            return bound_to | {"tensorrt": version(package)}
        except PackageNotFoundError:
            continue
    return bound_to


@register("tensorrt", versions)
def load(path: Path, options: PartOptions) -> Part:
    """A session for the graph and the profile that the file at `path` has.

    An engine that is not in the folder, or was built by another TensorRT or for another GPU, is
    built now, which takes minutes.

    Raises:
        ConfigurationError: the provider or a file is missing, or the graph cannot be loaded.
    """
    check_providers("TensorrtExecutionProvider", "CUDAExecutionProvider")
    import torch

    graph, profile = read_profile(path)
    stream = torch.cuda.Stream(options.device)  # type: ignore[no-untyped-call]
    provider = tensorrt_provider(graph, profile, options, stream.cuda_stream)
    chosen = [provider, cuda_provider(options.device, stream)]
    engines = graph.parent / ENGINES
    derived = engines.is_dir()
    with derived_files(engines, verify=options.verify) if derived else nullcontext():
        return TensorRTPart(graph, options, chosen, stream, profile)


def read_profile(path: Path) -> tuple[Path, Profile]:
    """The graph and the profile that the export has written to `path`.

    Raises:
        ConfigurationError: there is no such file, or it is not what the export writes.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        profile: Profile = {
            name: (tuple(a), tuple(b), tuple(c)) for name, (a, b, c) in content["profile"].items()
        }
        return path.with_name(content["graph"]), profile
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path}: no profile ({error}); export again") from error


def tensorrt_provider(graph: Path, profile: Profile, options: PartOptions, stream: int) -> Provider:
    """The provider's options."""
    engines = graph.parent / ENGINES
    chosen = {
        "device_id": str(options.device.index or 0),
        "user_compute_stream": str(stream),
        "trt_fp16_enable": _flag(options.info.dtype == "fp16"),
        "trt_bf16_enable": _flag(options.info.dtype == "bf16"),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_engine_cache_prefix": graph.stem,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engines),
        "trt_builder_optimization_level": "5",
        # Weights are handed to TensorRT one by one (10.13 and later): serialized with the graph,
        # as they are otherwise, SDXL's would exceed the 2 GB of a protobuf message.
        "trt_load_user_initializer": "1",
        # The pieces of a graph run in turn, so they may share what memory they need meanwhile.
        "trt_context_memory_sharing_enable": "1",
    }
    for index, which in enumerate(("min", "opt", "max")):
        chosen[f"trt_profile_{which}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in profile.items()
        )
    return "TensorrtExecutionProvider", chosen


class TensorRTPart(CudaPart):
    """Shapes outside the profile go to CUDA: TensorRT would build an engine, for minutes."""

    def __init__(
        self,
        path: Path,
        options: PartOptions,
        providers: Sequence[Provider],
        stream: torch.cuda.Stream,
        profile: Profile,
    ) -> None:
        super().__init__(path, options, providers, stream)
        self._profile = profile
        self._other: CudaPart | None = None
        self._load_other = partial(CudaPart, path, options, providers[1:], stream)

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        if fits(self._profile, shapes):
            return super()._run(inputs)
        if self._other is None:
            log.warning("no TensorRT engine was built for %s: CUDA runs it, slower", shapes)
            self._other = self._load_other()
        return self._other(inputs)

    def unload(self) -> None:
        super().unload()
        if self._other is not None:
            self._other.unload()


def fits(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether each shape lies within the profile's."""
    return all(
        len(shape) == len(profile[name][0])
        and all(
            least <= side <= most
            for least, side, most in zip(profile[name][0], shape, profile[name][2], strict=True)
        )
        for name, shape in shapes.items()
    )


def _flag(value: bool) -> str:
    return "1" if value else "0"
