"""Checks of the machine: device, instruction sets, threads, memory, the port."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdxl_bento.cli.doctor.findings import Finding, good, note, problem, warning
from sdxl_bento.cli.terminal import size_text
from sdxl_bento.config import Settings

PORT = 3000
DRIVER = Path("/proc/driver/nvidia/version")
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def device(settings: Settings) -> Iterator[Finding]:
    """Torch, its build, and the GPUs that it finds."""
    try:
        import torch
    except (ImportError, OSError) as error:
        mend = "pip install torch; for a GPU, the build for its CUDA (docs/guides/container.md)"
        yield problem("torch", f"cannot be imported: {error}", mend)
        return
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    yield good("torch", f"{torch.__version__}, {build}")
    if torch.cuda.is_available():
        yield from _gpus()
        return
    if DRIVER.exists():
        if torch.version.cuda is None:
            message, mend = (
                "there is an NVIDIA driver, but torch is built for CPUs",
                "install .[gpu]",
            )
        else:
            message = "there is an NVIDIA driver, but torch finds no GPU"
            mend = "compare the driver's version (nvidia-smi) with CUDA's, and CUDA_VISIBLE_DEVICES"
        yield warning("device", f"{message}: pictures are drawn on the CPU", mend)
    elif settings.device == "auto":
        yield note("device", "no GPU: pictures are drawn on the CPU")
    if settings.device not in ("auto", "cpu"):
        yield problem(
            "device", f"SDXL_DEVICE is {settings.device}, and torch finds no CUDA device",
            "SDXL_DEVICE=auto, or a CUDA build of torch",
        )  # fmt: skip


def _gpus() -> Iterator[Finding]:
    import torch

    driver = _driver()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            yield problem(f"cuda:{index}", f"{properties.name} does not answer: {error}")
            continue
        text = (
            f"{properties.name}, compute capability {capability}, {size_text(total)}, "
            f"{size_text(free)} free{driver}"
        )
        yield good(f"cuda:{index}", text)
        built = torch.cuda.get_arch_list()
        if not _runs_on(properties.major * 10 + properties.minor, built):
            yield warning(
                f"cuda:{index}", f"this torch is built for {' '.join(built)}",
                "install a build of torch for this GPU",
            )  # fmt: skip


def _runs_on(capability: int, built: Sequence[str]) -> bool:
    """Whether kernels built for `["sm_80", "sm_90a", "compute_90"]` run on a GPU.

    `capability` is 90 for 9.0. Machine code (`sm_`) runs on GPUs of the same major version that are
    not older; PTX (`compute_`) runs on all GPUs that are not older.
    """
    for name in built:
        kind, _, number = name.partition("_")
        target = int(number.rstrip("af"))
        if target <= capability and (kind == "compute" or target // 10 == capability // 10):
            return True
    return not built


def _driver() -> str:
    """The driver's version with a comma before it, or nothing if it is not known."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        return f", driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # the package or the driver is missing; the version is only information
        return ""


def cpu(settings: Settings) -> Iterator[Finding]:
    """The CPU: instruction sets and threads."""
    from sdxl_bento.backends.inductor import cpu_isa

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    isa = cpu_isa()
    yield good("CPU", f"{cores} cores, {isa}")
    fast = [name for name in ("avx512_bf16", "amx_tile") if name in isa.split()]
    if fast:
        yield good("CPU", f"computes in bf16 ({', '.join(fast)}): `--compute-dtype bf16` pays")
    else:
        yield note("CPU", "has no bf16: compiled models are best in fp32 here")
    if cores and settings.threads > cores:
        yield warning(
            "CPU", f"SDXL_THREADS is {settings.threads}, more than there are cores",
            f"SDXL_THREADS={cores}, or 0",
        )  # fmt: skip


def available_memory() -> int | None:
    """Bytes that a process can still allocate; None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    amounts = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(amounts.get("MemAvailable", "0 kB").split()[0]) * 1024
    try:
        limit = _CGROUP.read_text().strip()
        used = int(_CGROUP.with_name("memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdigit() else free


def gpu_memory() -> int | None:
    """Free bytes of the first GPU; None if there is none."""
    try:
        import torch

        return torch.cuda.mem_get_info(0)[0] if torch.cuda.is_available() else None
    except (ImportError, OSError, RuntimeError):
        return None


def port(_: Settings) -> Iterator[Finding]:
    """Whether `bentoml serve` can have its port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", PORT)) == 0
    if taken:
        yield note(
            "port", f"{PORT} is in use; perhaps by a server that you have started",
            "`bentoml serve --port`, or end the other process",
        )  # fmt: skip
    else:
        yield good("port", f"{PORT} is free")
