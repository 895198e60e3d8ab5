"""What a server may hold, and that it gives back what it freed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.manifest import BackendInfo
from sdxl_bento.serving import memory
from sdxl_bento.serving.memory import COPIES, KERNEL, MIB, PROCESS, budget, give_back
from tests.support.manifests import manifest

INFO = BackendInfo(
    backend="openvino", device="cpu", versions={}, artifacts={"base/unet": "a", "refiner/unet": "b"}
)


def test_the_budget_follows_the_settings_that_move_it(tmp_path: Path) -> None:
    described = manifest()
    small = Settings(prompt_cache_mb=3, openvino_kernels=10, lora_cache_mb=100)
    eager = PROCESS + COPIES * described.bytes + 3 * MIB
    assert budget(described, small, None) == eager
    assert budget(described, small, INFO.model_copy(update={"backend": "onnx"})) == eager
    assert budget(described, small, INFO) == eager + 2 * 10 * KERNEL
    with_folder = small.model_copy(update={"lora_dir": tmp_path})
    assert budget(described, with_folder, None) == eager + 200 * MIB


async def test_memory_is_given_back_once_enough_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while nothing happens, and again only after the process has grown anew."""
    held = iter([100, 100, 131, 150, 60, 91, 93, 70])
    seen: list[int] = []
    trimmed: list[int] = []

    def resident() -> int:
        seen.append(next(held, 70))
        return seen[-1] * MIB

    def trim() -> bool:
        trimmed.append(seen[-1])
        return len(trimmed) < 2

    monkeypatch.setattr(memory, "resident", resident)
    monkeypatch.setattr(memory, "trim", trim)
    async with asyncio.timeout(5):
        await give_back(0.001)  # which ends where the C library cannot do it
    assert trimmed == [150, 93]


async def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "trim", lambda: pytest.fail("turned off"))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await give_back(0)


def test_freed_memory_goes_back_to_the_system() -> None:
    if not memory.trim():
        pytest.skip("the C library cannot give memory back")
    before = memory.resident()
    blocks = [bytearray(64 * 1024) for _ in range(2000)]  # 125 MiB, too small to be mapped alone
    keep = blocks[-1]  # so that the heap cannot simply be cut off at its end
    del blocks
    assert memory.trim()
    assert memory.resident() - before < 60 * MIB
    assert len(keep)
