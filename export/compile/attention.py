"""Pick the attention backend that is fastest here and gives what PyTorch's own gives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from export.check.likeness import psnr_db
from export.errors import ExportError
from sdxl_bento.backends.attention import NATIVE, apply_attention
from sdxl_bento.errors import ConfigurationError

LEAST_PSNR_DB = 40.0  # against native, of the UNet's output
LEAST_GAIN = 1.03  # a backend must be that many times as fast: less is noise
RUNS = 5


@dataclass(frozen=True)
class Figure:
    """One candidate. `refused` says why it cannot win; empty if it can."""

    name: str
    ms: float | None = None
    psnr_db: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend to use, and what was measured of each candidate."""

    name: str
    figures: tuple[Figure, ...]


def pick_attention(
    unet: Any,
    example_inputs: Mapping[str, torch.Tensor],
    candidates: Sequence[str],
    runs: int = RUNS,
) -> Choice:
    """Time whole forwards of a diffusers UNet with each candidate; it is left with the winner.

    Args:
        unet: on its device, in the dtype it shall compute in.
        example_inputs: as `export.model.graphs.unet_example` makes them, of a size that will be
            served.
        candidates: of `sdxl_bento.backends.attention.installed`; native is measured in any case.
        runs: timed forwards of each.

    Raises:
        ExportError: PyTorch's own attention does not run.
    """
    reference, native_ms = _measure(unet, NATIVE, example_inputs, runs)
    figures = [Figure(NATIVE, native_ms, math.inf)]
    for name in candidates:
        if name != NATIVE:
            figures.append(_figure(unet, name, example_inputs, runs, reference))
    able = [figure for figure in figures if not figure.refused and figure.ms is not None]
    best = min(able, key=lambda figure: figure.ms or math.inf)
    gain = native_ms / (best.ms or native_ms)
    name = best.name if gain >= LEAST_GAIN else NATIVE
    apply_attention(unet, name)
    return Choice(name, tuple(figures))


def _figure(
    unet: Any, name: str, inputs: Mapping[str, torch.Tensor], runs: int, reference: torch.Tensor
) -> Figure:
    try:
        output, ms = _measure(unet, name, inputs, runs)
    # A kernel that does not take the shapes, the dtype or the device says so in its own way.
    except Exception as error:
        return Figure(name, refused=str(error).strip().partition("\n")[0] or repr(error))
    quality = psnr_db(output, reference)
    if not quality >= LEAST_PSNR_DB:  # NaN too
        return Figure(name, ms, quality, f"{quality:.1f} dB, needed are {LEAST_PSNR_DB:g}")
    return Figure(name, ms, quality)


def _measure(
    unet: Any, name: str, inputs: Mapping[str, torch.Tensor], runs: int
) -> tuple[torch.Tensor, float]:
    """The output, and the median time of a forward in ms."""
    from export.model.graphs import UNetRows

    try:
        apply_attention(unet, name)
    except ConfigurationError as error:
        raise ExportError(str(error)) from error
    run = UNetRows(unet)
    cuda = inputs["sample"].is_cuda
    times = []
    with torch.no_grad():
        output = run(**inputs)
        for _ in range(runs):
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run(**inputs)
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) * 1e3)
    return output.float(), sorted(times)[len(times) // 2]
