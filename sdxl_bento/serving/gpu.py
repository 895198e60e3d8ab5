"""A GPU's memory and utilization, as the driver reports them through NVML."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a GPU is doing.

    Attributes:
        device: the driver's index of the GPU, which CUDA_VISIBLE_DEVICES does not change.
        memory_bytes: memory in use on the GPU, by any process.
        busy_percent: None where the driver does not report it, as for a MIG slice.
    """

    device: str
    memory_bytes: int
    busy_percent: float | None


class GPU:
    """One GPU. `nvml` is the module that talks to the driver, `handle` is the driver's for it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._device = str(nvml.nvmlDeviceGetIndex(handle))

    def usage(self) -> Usage:
        """What the GPU is doing now. Takes some milliseconds."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        try:
            busy = float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        except self._nvml.NVMLError:
            busy = None
        return Usage(self._device, memory, busy)


def gpus_of(devices: Iterable[str]) -> list[GPU]:
    """The GPUs among torch's devices; none if nvidia-ml-py or the driver is missing."""
    cuda = sorted(device for device in devices if device.startswith("cuda"))
    if not cuda:
        return []
    try:
        import pynvml  # type: ignore[import-untyped]
        import torch

        pynvml.nvmlInit()
        # Looked up by UUID, because torch numbers the visible devices and the driver all of them.
        uuids = [torch.cuda.get_device_properties(device).uuid for device in cuda]
        return [GPU(pynvml, _handle(pynvml, str(uuid))) for uuid in uuids]
    except Exception as error:  # a server without these metrics is better than none
        logger.warning("there are no metrics of the GPU: %s", error)
        return []


def _handle(nvml: Any, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}".encode())
