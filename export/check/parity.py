"""Verification of compiled parts: their outputs against those of the eager original in float32.

Every part is run in every shape that its backend was built for, or in a few where any shape is
allowed. The manifest keeps the worst figure of a part, so one wrong shape refuses the backend.

Some inputs of a UNet change its output by less than what rounding does: on the embedded model a
graph that ignores the prompt is 54 dB from the original, where bfloat16 needs 35. So it is also
checked that the output changes with each input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.errors import VerificationError
from export.likeness import compare_outputs
from export.model.components import load_component, load_shapes
from export.model.graphs import Decoder, UNetRows, UNetSlots, draw_example, slot_example
from export.model.parts import component_of, has_slots, is_decoder, role_of
from sdxl_bento.backends.choose import runtime
from sdxl_bento.backends.examples import latents_example
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.backends.probes import SLOTS
from sdxl_bento.backends.slots import SlotLayout
from sdxl_bento.manifest import (
    BackendInfo,
    ParityFigure,
    PipelineInfo,
    Probe,
    Quantization,
    Role,
    WeightDtype,
)

Tensors = dict[str, torch.Tensor]

# The lowest PSNR in dB that a part may have against float32. What rounding alone costs leaves a
# part far above these limits.
LEAST_PSNR_DB: Mapping[WeightDtype, float] = {"fp32": 60.0, "fp16": 40.0, "bf16": 35.0}
LEAST_PSNR_QUANTIZED_DB: Mapping[Quantization, float] = {
    "int8-weights": 30.0,
    "int8": 25.0,
    "int8-static": 25.0,
    "fp8": 25.0,
}
LEAST_PROBE_CELLS = 9  # of a side, since a refiner's graph takes no smaller one
UNET_ROWS = (1, 2, 5)  # tried where a backend takes any number of rows


def least_psnr(info: BackendInfo, part: str) -> float:
    """The lowest PSNR in dB that a part of `info` may have, by what it computes in."""
    if is_decoder(part):
        return LEAST_PSNR_DB[info.vae_dtype or "fp32"]
    if info.quantization is not None:
        return LEAST_PSNR_QUANTIZED_DB[info.quantization]
    return LEAST_PSNR_DB[info.dtype or "fp32"]


def verify_parts(
    info: BackendInfo,
    folder: Path,
    pipelines: Mapping[Role, PipelineInfo],
    device: torch.device,
    keep: dict[str, tuple[Probe, torch.Tensor]] | None = None,
) -> tuple[ParityFigure, ...]:
    """Compare every compiled part of a backend with its original, in all of its shapes.

    An original is read once for all parts that are made from it, and is released before they are
    loaded.

    Args:
        info: the backend; its artifacts are in `folder`.
        folder: of the model.
        pipelines: of the model, by role.
        device: where the parts run.
        keep: filled with a probe of each part, and the original's output for it.

    Returns:
        For each part the worst figure of all its shapes, in the order of `info.artifacts`.

    Raises:
        VerificationError: an output is not finite, or too far from the original's.
    """
    figures: dict[str, ParityFigure] = {}
    for component, parts in _by_component(info, folder, pipelines).items():
        cases = {part: list(cases_of(part, info, pipelines[role_of(part)])) for part in parts}
        shapes = load_shapes(component)
        for part in parts:
            cases[part].append(probe_case(part, info, pipelines[role_of(part)], shapes))
        references = _references(component, shapes, cases, device)
        for part in parts:
            options = PartOptions(info, device, component)
            compiled = runtime(info.backend).load(folder / info.artifacts[part], options)
            try:
                figures[part] = worst_figure(
                    compare_outputs(part, _run(compiled, case.inputs(shapes, device)), reference)
                    for case, reference in zip(cases[part], references[part], strict=True)
                )
                check_figure(info, figures[part])
                check_inputs(part, compiled, cases[part][0].inputs(shapes, device))
                if keep is not None:
                    probe = cases[part][-1].probe(least_psnr(info, part))
                    keep[part] = probe, references[part][-1]
            finally:
                compiled.unload()
    return tuple(figures[part] for part in info.artifacts)


@dataclass(frozen=True)
class Case:
    """One shape in which a part is tried: rows of the batch, and the sides in latent cells."""

    part: str
    rows: int
    height: int
    width: int
    slots: int = 3

    def inputs(self, shapes: Any, device: torch.device) -> Tensors:
        """Random inputs, the same each time. `shapes` is the component without its weights."""
        if is_decoder(self.part):
            channels = shapes.config.latent_channels
            latents = latents_example(channels, self.rows, self.height, self.width)
            return {"latents": latents.to(device)}
        inputs = draw_example(role_of(self.part), shapes.config, self.rows, self.height, self.width)
        if has_slots(self.part):
            inputs |= slot_example(SlotLayout(shapes), self.rows, inputs["sample"], self.slots)
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def probe(self, least_db: float) -> Probe:
        """The manifest's entry of the case that the service repeats when it loads the part."""
        return Probe(rows=self.rows, height=self.height, width=self.width, psnr_db=least_db)


def cases_of(part: str, info: BackendInfo, pipeline: PipelineInfo) -> Iterator[Case]:
    """The shapes in which a part is tried.

    These are all that its backend was built for. Where a backend takes any size, they are the
    native size and one of other proportions; where it takes any number of rows, `UNET_ROWS`. A
    decoder is tried with one picture of each size and with two of a small one, since memory may
    not hold two large ones.
    """
    scale = pipeline.vae_scale_factor
    native = pipeline.height // scale, pipeline.width // scale
    sizes = [(size.height // scale, size.width // scale) for size in info.sizes]
    small = min(sizes, key=math.prod, default=(native[0] // 2, native[1] // 2))
    sizes = sizes or [native, (native[0], native[1] * 5 // 4)]
    if is_decoder(part):
        yield from (Case(part, 1, *size) for size in sizes)
        yield Case(part, 2, *small)
    else:
        rows = info.rows or UNET_ROWS
        yield from (Case(part, count, *size) for size in sizes for count in rows)


def probe_case(part: str, info: BackendInfo, pipeline: PipelineInfo, shapes: Any) -> Case:
    """The case that the service repeats when it loads the part: as few rows and cells as may be.

    That is a quarter of the native side, in whole cells on every level of the network; or, where
    the backend was built for certain shapes, the smallest of them. `shapes` is the component
    without its weights.
    """
    scale = pipeline.vae_scale_factor
    step = 2 ** (len(shapes.config.block_out_channels) - 1)
    least = max(LEAST_PROBE_CELLS, pipeline.height // scale // 4)
    side = -(-least // step) * step
    sizes = [(size.height // scale, size.width // scale) for size in info.sizes]
    height, width = min(sizes, key=math.prod, default=(side, side))
    rows = 1 if is_decoder(part) else min(info.rows, default=1)
    return Case(part, rows, height, width, SLOTS)


def worst_figure(figures: Iterable[ParityFigure]) -> ParityFigure:
    """The figure with the lowest PSNR.

    Raises:
        ValueError: there is none, so nothing was compared.
    """
    return min(figures, key=_psnr)


def check_figure(info: BackendInfo, figure: ParityFigure) -> None:
    """Raise `VerificationError` unless a part is as close to its original as it must be."""
    least = least_psnr(info, figure.part)
    if figure.psnr_db is not None and figure.psnr_db < least:
        raise VerificationError(
            f"{figure.part} compiled for {info.label}: {figure.psnr_db} dB from the original, at "
            f"least {least} dB are needed; choose another --compute-dtype or --quantize"
        )


def check_inputs(name: str, part: Part, inputs: Tensors) -> None:
    """Raise `VerificationError` if a part gives the same output when one of its inputs changes.

    Args:
        name: of the part.
        part: loaded.
        inputs: for which its output is right.
    """
    output = _run(part, inputs)
    for changed, tensor in inputs.items():
        other = tensor / 2 if tensor.is_floating_point() else (tensor + 1) % 2
        if torch.equal(_run(part, inputs | {changed: other}), output):
            raise VerificationError(f"{name}: its output does not depend on the input {changed}")


def _psnr(figure: ParityFigure) -> float:
    return math.inf if figure.psnr_db is None else figure.psnr_db


def _by_component(
    info: BackendInfo, folder: Path, pipelines: Mapping[Role, PipelineInfo]
) -> dict[Path, list[str]]:
    """The parts that are made from each component's folder, a UNet before that with slots."""
    parts: dict[Path, list[str]] = {}
    for part in sorted(info.artifacts):
        component = folder / pipelines[role_of(part)].path / component_of(part)
        parts.setdefault(component, []).append(part)
    return parts


@torch.inference_mode()
def _references(
    component: Path, shapes: Any, cases: Mapping[str, Sequence[Case]], device: torch.device
) -> dict[str, list[torch.Tensor]]:
    """The original's outputs in float32, on the CPU, by part and case."""
    original = load_component(component, torch.float32, device)
    outputs: dict[str, list[torch.Tensor]] = {}
    for part in cases:  # the part with slots comes last: its hooks stay on the layers
        module = _as_part(part, original)
        outputs[part] = [module(**case.inputs(shapes, device)).cpu() for case in cases[part]]
        del module
    del original
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other runtimes cannot use what torch keeps reserved
    return outputs


def _run(part: Part, inputs: Tensors) -> torch.Tensor:
    """The output of a compiled part in float32, on the CPU."""
    return part(inputs).float().cpu()


def _as_part(part: str, original: Any) -> torch.nn.Module:
    """The original with the inputs of the part's graph."""
    if is_decoder(part):
        return Decoder(original)
    return UNetSlots(original) if has_slots(part) else UNetRows(original)
