"""How much memory a server keeps between requests, and giving back what was freed.

glibc keeps what a program frees, in one arena for each of many threads: after some uploads decoded
in threads, or batches of many sizes, that is gigabytes. It is asked to return the pages.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.manifest import BackendInfo, Manifest

MIB = 1024 * 1024
LEAST = 32 * MIB  # that the process must have grown by before it is worth the walk over its heaps
PROCESS = 700 * MIB  # Python, torch, the web server and the page, measured
COPIES = 3  # of a model's files: runtimes rearrange the weights, and hold both forms for a while
KERNEL = MIB // 2  # measured: 0.35 MiB in a plain UNet, 0.95 in the one with slots, less in a VAE
_STATM = Path("/proc/self/statm")


def budget(manifest: Manifest, settings: Settings, info: BackendInfo | None) -> int:
    """Bytes that a server with this one model may hold while nothing is being drawn.

    Args:
        manifest: of the model.
        settings: of the service.
        info: the compiled backend that runs it; None for eager.
    """
    kernels = 0
    if info is not None and info.backend == "openvino":
        kernels = len(info.artifacts) * settings.openvino_kernels * KERNEL
    # Loaded adapters, and as much again for what batches compute from them.
    adapters = 2 * settings.lora_cache_mb * MIB if settings.lora_dir else 0
    prompts = settings.prompt_cache_mb * MIB
    return PROCESS + COPIES * manifest.bytes + kernels + adapters + prompts


async def give_back(every_s: float) -> None:
    """Return freed memory to the operating system every `every_s` seconds, until cancelled."""
    lowest = resident()
    while every_s:
        await asyncio.sleep(every_s)
        held = resident()
        lowest = min(lowest, held)
        if held - lowest < LEAST:
            continue
        if not await asyncio.to_thread(trim):
            return
        lowest = resident()


def resident() -> int:
    """Bytes of this process in memory; 0 if the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def trim() -> bool:
    """Let the C library return the pages that it holds and nobody uses. False if it cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        return False
    return True
