"""From host to device without waiting for it.

A copy from ordinary (pageable) memory makes the host wait until the device has done all work queued
before it, whatever `non_blocking` says. The engine keeps two steps in flight, so one such
copy in a step would cost both. From pinned memory the copy is one more item in the queue.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device, in order with what runs there."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A device tensor in (pinned) host memory; to be read after an event recorded later."""
    return tensor.to("cpu", non_blocking=True)


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    """Numbers of a config, as float32, uploaded once."""
    return to_device(torch.tensor(values, dtype=torch.float32), device)
