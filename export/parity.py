"""Is a compiled part still the model? Its output against the eager original's in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from export.components import DTYPES, component_of, load_component
from export.errors import VerificationError
from export.graphs import Decoder, UNetRows, UNetSlots, slot_example, unet_example
from export.layout import Role
from export.likeness import compare
from sdxl_bento.backends.choose import runtime
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.manifest import (
    BackendInfo,
    ParityFigure,
    PipelineInfo,
    Quantization,
    WeightDtype,
)

Tensors = dict[str, torch.Tensor]

# Least PSNR of a part against float32, in dB. A part with a fault (a wrong input, a lost layer)
# is below 20; what rounding leaves is far above these.
LEAST_PSNR_DB: Mapping[WeightDtype, float] = {"fp32": 60.0, "fp16": 40.0, "bf16": 35.0}
LEAST_PSNR_QUANTIZED_DB: Mapping[Quantization, float] = {
    "int8-weights": 30.0,
    "int8": 25.0,
    "fp8": 25.0,
}
ROWS = (1, 2, 5)


def least_psnr(info: BackendInfo, part: str) -> float:
    """The threshold of one part, by what it computes in."""
    if info.quantization is not None and not part.endswith("vae_decoder"):
        return LEAST_PSNR_QUANTIZED_DB[info.quantization]
    dtype = info.vae_dtype if part.endswith("vae_decoder") else info.dtype
    return LEAST_PSNR_DB[dtype or "fp32"]


def verify_parts(
    info: BackendInfo, folder: Path, pipelines: Mapping[Role, PipelineInfo], device: torch.device
) -> tuple[ParityFigure, ...]:
    """The worst figure of each compiled part over all sizes and rows that it was built for.

    Raises:
        VerificationError: an output is not finite, or too far from the original's.
    """
    figures = []
    for part, path in info.artifacts.items():
        role: Role = "refiner" if part.startswith("refiner/") else "base"
        pipeline = pipelines[role]
        component = folder / pipeline.path / component_of(part)
        options = PartOptions(info, device, component)
        compiled = runtime(info.backend).load(folder / path, options)
        try:
            figure = _worst(part, compiled, component, info, pipeline, device)
        finally:
            compiled.unload()
        least = least_psnr(info, part)
        if figure.psnr_db is not None and figure.psnr_db < least:
            raise VerificationError(
                f"{part} compiled for {info.label}: {figure.psnr_db} dB from the original, at "
                f"least {least} dB are needed; choose another --compute-dtype or --quantize"
            )
        figures.append(figure)
    return tuple(figures)


def _worst(
    part: str,
    compiled: Part,
    component: Path,
    info: BackendInfo,
    pipeline: PipelineInfo,
    device: torch.device,
) -> ParityFigure:
    original = load_component(component, torch.float32, device)
    role: Role = "refiner" if part.startswith("refiner/") else "base"
    worst: ParityFigure | None = None
    for reference, inputs in _cases(part, role, original, info, pipeline):
        with torch.inference_mode():
            expected = reference(**inputs).float()
            found = compiled(inputs).float()
        figure = compare(part, found, expected)
        if worst is None or _psnr(figure) < _psnr(worst):
            worst = figure
    assert worst is not None
    return worst


def _cases(
    part: str, role: Role, original: Any, info: BackendInfo, pipeline: PipelineInfo
) -> Iterator[tuple[torch.nn.Module, Tensors]]:
    """The original as a graph would call it, with inputs of every shape to be tried."""
    scale = pipeline.vae_scale_factor
    sizes = [(size.height, size.width) for size in info.sizes]
    native = pipeline.height, pipeline.width
    cells = [(h // scale, w // scale) for h, w in sizes or _sizes(native)]
    if part.endswith("vae_decoder"):
        decoder = Decoder(original)
        parameter = next(decoder.parameters())
        for height, width in cells:
            random = torch.Generator().manual_seed(height * 1009 + width)
            shape = 1, original.config.latent_channels, height, width
            latents = torch.randn(shape, generator=random).to(parameter)
            yield decoder, {"latents": latents}
        return
    module = UNetSlots(original) if part.endswith("slots") else UNetRows(original)
    for height, width in cells:
        for rows in info.rows or ROWS:
            inputs = unet_example(role, original, rows, height, width)
            if isinstance(module, UNetSlots):
                inputs |= slot_example(module.layout, rows, inputs["sample"])
            yield module, inputs


def _sizes(native: tuple[int, int]) -> list[tuple[int, int]]:
    """Where any size may come: the native one, and another of other proportions."""
    height, width = native
    return [native, (height, width * 5 // 4)]


def _psnr(figure: ParityFigure) -> float:
    return math.inf if figure.psnr_db is None else figure.psnr_db


def pick_vae_dtype(vae_folder: Path, dtype: WeightDtype, device: torch.device) -> WeightDtype:
    """The narrowest of `dtype`, bf16 and fp32 in which the decoder keeps within its threshold.

    SDXL's own decoder overflows in fp16; those with mended weights do not. The latents tried are
    those of plain and of noisy pictures, as the encoder makes them, and random ones.
    """
    if dtype == "fp32":
        return dtype
    original = load_component(vae_folder, torch.float32, device)
    latents = _trial_latents(original, device)
    with torch.inference_mode():
        expected = original.decode(latents).sample
        for candidate in dict.fromkeys((dtype, "bf16")):
            vae = load_component(vae_folder, DTYPES[candidate], device)
            found = vae.decode(latents.to(vae.dtype)).sample.float()
            if not found.isfinite().all():
                continue
            if _psnr(compare("vae", found, expected)) >= LEAST_PSNR_DB[candidate]:
                return candidate
    return "fp32"


def _trial_latents(vae: Any, device: torch.device) -> torch.Tensor:
    """[5, 4, 32, 32], unscaled."""
    side = 32 * 2 ** (len(vae.config.block_out_channels) - 1)
    random = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, side)
    pictures = torch.stack(
        [
            torch.ones(3, side, side),
            -torch.ones(3, side, side),
            ramp.repeat(3, side, 1),
            torch.rand(3, side, side, generator=random) * 2 - 1,
        ]
    )
    with torch.inference_mode():
        encoded = vae.encode(pictures.to(device)).latent_dist.mode()
    noise = torch.randn(encoded[:1].shape, generator=random) / vae.config.scaling_factor
    return torch.cat([encoded, noise.to(device)])
