"""The choice of the attention backend: the fastest on this machine that is accurate.

Accurate means that the UNet's output is close to the one with PyTorch's own attention.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.errors import ExportError
from export.likeness import psnr_db
from export.model.components import load_component
from export.model.graphs import UNetRows, unet_example
from export.progress import Progress
from sdxl_bento.backends.attention import NATIVE, apply_attention, installed
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import PipelineInfo

LEAST_PSNR_DB = 40.0  # of the UNet's output against the one with PyTorch's own attention
LEAST_GAIN = 1.03  # a backend must be that many times as fast; smaller gains may be noise
RUNS = 5


@dataclass(frozen=True)
class Figure:
    """What was measured of one candidate. `refused` is the reason why it cannot be chosen."""

    name: str
    ms: float | None = None
    psnr_db: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend to use, and what was measured of each candidate."""

    name: str
    figures: tuple[Figure, ...]


def choose_attention(
    folder: Path, pipeline: PipelineInfo, wanted: str, progress: Progress
) -> str | None:
    """The attention backend that the eager model is to run with; None leaves it to PyTorch.

    Args:
        folder: of the base UNet.
        pipeline: the base model's.
        wanted: the name of a backend; or "auto", which on a GPU measures all that are installed.
        progress: where the stage is reported.

    Raises:
        ExportError: the backend that was named does not run on this machine, or not accurately.
    """
    cuda = torch.cuda.is_available()
    if wanted == "auto" and not cuda:
        return None
    device = torch.device("cuda" if cuda else "cpu")
    with progress.stage("Choose the attention backend"):
        unet = load_component(folder, torch.float16 if cuda else torch.float32, device)
        side = pipeline.width // pipeline.vae_scale_factor
        inputs = unet_example("base", unet, rows=2, height=side, width=side)
        candidates = installed(device) if wanted == "auto" else [wanted]
        choice = pick_attention(unet, inputs, candidates)
    for figure in choice.figures:
        if figure.name == wanted and figure.refused:
            raise ExportError(f"--attention {wanted}: {figure.refused}")
    return wanted if wanted != "auto" else choice.name


def pick_attention(
    unet: Any,
    example_inputs: Mapping[str, torch.Tensor],
    candidates: Sequence[str],
    runs: int = RUNS,
) -> Choice:
    """Time forwards of a diffusers UNet with each candidate. The UNet keeps the chosen one.

    Args:
        unet: on its device, in the dtype that it will compute in.
        example_inputs: of `export.model.graphs.unet_example`, in a size that will be served.
        candidates: names from `sdxl_bento.backends.attention.installed`; PyTorch's own is measured
            in any case.
        runs: timed forwards of each candidate.

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
    # Each kernel has its own exceptions for shapes, dtypes and devices that it does not support.
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
