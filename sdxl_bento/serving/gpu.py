"""What the driver knows of a GPU: its memory and how busy it is, by NVML."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True, slots=True)
class Usage:
    """`device` is the driver's index, which CUDA_VISIBLE_DEVICES does not change.

    `memory_bytes` are all in use on the device, whoever uses them. `busy_percent` is None where
    the driver does not tell, as for a MIG slice.
    """

    device: str
    memory_bytes: int
    busy_percent: float | None


class GPU:
    """One device. `nvml` is the module that speaks to the driver, `handle` its name for it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._device = str(nvml.nvmlDeviceGetIndex(handle))

    def usage(self) -> Usage:
        """What the device is doing now; takes milliseconds."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        try:
            busy = float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        except self._nvml.NVMLError:
            busy = None
        return Usage(self._device, memory, busy)


def gpus_of(devices: Iterable[str]) -> list[GPU]:
    """The GPUs among torch's devices; none where nvidia-ml-py or the driver is missing."""
    wanted = sorted(device for device in devices if device.startswith("cuda"))
    if not wanted:
        return []
    try:
        import pynvml  # type: ignore[import-untyped]
        import torch

        pynvml.nvmlInit()
        # By its UUID: torch counts the visible devices, the driver all.
        uuids = [torch.cuda.get_device_properties(device).uuid for device in wanted]
        return [GPU(pynvml, _handle(pynvml, str(uuid))) for uuid in uuids]
    except Exception as error:  # metrics are no reason to fail
        logger.warning("no metrics of the GPU: %s", error)
        return []


def _handle(nvml: Any, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}".encode())
