"""Is a compiled part still the model? Its output against the eager original's in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.check.likeness import compare
from export.errors import VerificationError
from export.model.components import DTYPES, component_of, load_component, load_shapes
from export.model.graphs import Decoder, UNetRows, UNetSlots, draw_example, slot_example
from export.model.layout import Role
from sdxl_bento.backends.choose import runtime
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.backends.slots import SlotLayout
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
    "int8-static": 25.0,
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

    An original is read once for all parts that are made from it, and is gone when they are loaded.

    Raises:
        VerificationError: an output is not finite, or too far from the original's.
    """
    figures: dict[str, ParityFigure] = {}
    for component, parts in _by_component(info, folder, pipelines).items():
        cases = [case for part in parts for case in _cases(part, info, pipelines[_role(part)])]
        shapes = load_shapes(component)
        expected = _expected(component, shapes, cases, device)
        for part in parts:
            compiled = runtime(info.backend).load(
                folder / info.artifacts[part], PartOptions(info, device, component)
            )
            try:
                figures[part] = _worst(
                    compare(part, compiled(case.inputs(shapes, device)).float().cpu(), output)
                    for case, output in zip(cases, expected, strict=True)
                    if case.part == part
                )
            finally:
                compiled.unload()
            _check(info, figures[part])
    return tuple(figures[part] for part in info.artifacts)


@dataclass(frozen=True)
class _Case:
    """A shape to be tried. Sides in latent cells; `rows` are a UNet's."""

    part: str
    rows: int
    height: int
    width: int

    def inputs(self, shapes: Any, device: torch.device) -> Tensors:
        """Random ones, the same each time. `shapes` is the component without its weights."""
        if self.part.endswith("vae_decoder"):
            random = torch.Generator().manual_seed(self.height * 1009 + self.width)
            shape = 1, shapes.config.latent_channels, self.height, self.width
            return {"latents": torch.randn(shape, generator=random).to(device)}
        inputs = draw_example(_role(self.part), shapes.config, self.rows, self.height, self.width)
        if self.part.endswith("slots"):
            inputs |= slot_example(SlotLayout(shapes), self.rows, inputs["sample"])
        return {name: tensor.to(device) for name, tensor in inputs.items()}


def _by_component(
    info: BackendInfo, folder: Path, pipelines: Mapping[Role, PipelineInfo]
) -> dict[Path, list[str]]:
    """The parts that are made from each component's folder, a UNet before that with slots."""
    found: dict[Path, list[str]] = {}
    for part in sorted(info.artifacts):
        component = folder / pipelines[_role(part)].path / component_of(part)
        found.setdefault(component, []).append(part)
    return found


def _role(part: str) -> Role:
    return "refiner" if part.startswith("refiner/") else "base"


def _cases(part: str, info: BackendInfo, pipeline: PipelineInfo) -> Iterator[_Case]:
    scale = pipeline.vae_scale_factor
    sizes = [(size.height, size.width) for size in info.sizes]
    rows = (1,) if part.endswith("vae_decoder") else info.rows or ROWS
    for height, width in sizes or _sizes((pipeline.height, pipeline.width)):
        for count in rows:
            yield _Case(part, count, height // scale, width // scale)


@torch.inference_mode()
def _expected(
    component: Path, shapes: Any, cases: Sequence[_Case], device: torch.device
) -> list[torch.Tensor]:
    """What the original gives in float32, on the CPU."""
    original = load_component(component, torch.float32, device)
    outputs, modules = [], dict[str, torch.nn.Module]()
    for case in cases:
        if case.part not in modules:  # slots come last: their hooks stay on the layers
            modules[case.part] = _as_part(case.part, original)
        outputs.append(modules[case.part](**case.inputs(shapes, device)).cpu())
    del original, modules
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other runtimes do not take it from torch
    return outputs


def _as_part(part: str, original: Any) -> torch.nn.Module:
    """The original as the graph of a part would call it."""
    if part.endswith("vae_decoder"):
        return Decoder(original)
    return UNetSlots(original) if part.endswith("slots") else UNetRows(original)


def _worst(figures: Iterable[ParityFigure]) -> ParityFigure:
    return min(figures, key=_psnr)


def _check(info: BackendInfo, figure: ParityFigure) -> None:
    least = least_psnr(info, figure.part)
    if figure.psnr_db is not None and figure.psnr_db < least:
        raise VerificationError(
            f"{figure.part} compiled for {info.label}: {figure.psnr_db} dB from the original, at "
            f"least {least} dB are needed; choose another --compute-dtype or --quantize"
        )


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
