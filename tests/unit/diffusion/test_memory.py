"""Every way in which memory runs out is one type of error; nothing else is."""

from __future__ import annotations

import pytest
import torch

from sdxl_bento.diffusion.memory import out_of_memory_typed
from sdxl_bento.engine.executor import DeviceOutOfMemory

TOO_LARGE = 1 << 46  # bytes; more than an address space of 47 bits has to give


def test_torchs_allocator_for_the_cpu() -> None:
    with pytest.raises(DeviceOutOfMemory, match="memory") as caught, out_of_memory_typed():
        torch.empty(TOO_LARGE, dtype=torch.uint8)
    assert type(caught.value.__cause__) is RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        MemoryError("Unable to allocate 72.8 TiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_other_ways(error: Exception) -> None:
    with pytest.raises(DeviceOutOfMemory) as caught, out_of_memory_typed():
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value) == str(error)


def test_a_backends_own_is_passed_on() -> None:
    error = DeviceOutOfMemory("the part says so")
    with pytest.raises(DeviceOutOfMemory) as caught, out_of_memory_typed():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), ValueError("not enough memory")]
)
def test_everything_else_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, out_of_memory_typed():
        raise error
    assert caught.value is error
