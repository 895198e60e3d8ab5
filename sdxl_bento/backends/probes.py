"""The self-check of compiled parts: one forward each, compared with what the original gave.

The export has run the original in float32 on the same inputs and kept the outputs. A part that
computes something else on this machine, for whatever reason, is found before it draws a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdxl_bento.backends.examples import draw_example, latents_example, slot_example
from sdxl_bento.backends.likeness import psnr_db
from sdxl_bento.backends.parts import Part
from sdxl_bento.backends.slots import SlotLayout
from sdxl_bento.manifest import BackendInfo, Probe, Role

SLOTS = 2  # one of zeros, and one with an adapter


def probe_inputs(
    part: str, probe: Probe, unet: Any, latent_channels: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The inputs of a part for its probe, by name.

    Args:
        part: its name, as in "base/unet_slots".
        probe: what the manifest says of it.
        unet: the UNet of its pipeline, of which only config and shapes are used.
        latent_channels: of the pipeline.
        device: where the part runs.
    """
    shape = probe.rows, probe.height, probe.width
    if part.endswith("/vae_decoder"):
        return {"latents": latents_example(latent_channels, *shape).to(device)}
    role: Role = "refiner" if part.startswith("refiner/") else "base"
    inputs = draw_example(role, unet.config, *shape)
    if part.endswith("/unet_slots"):
        inputs |= slot_example(SlotLayout(unet), probe.rows, inputs["sample"], SLOTS)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def failed_probe(
    info: BackendInfo,
    folder: Path,
    parts: Mapping[str, Part],
    unets: Mapping[Role, Any],
    latent_channels: int,
    device: torch.device,
) -> str:
    """Why the parts must not be used here, in words; empty if they may.

    Args:
        info: the backend. One without probes, which an earlier export has written, is not checked.
        folder: of the model.
        parts: by name; those without a probe are not run.
        unets: the UNets by pipeline, of which only config and shapes are used.
        latent_channels: of the model.
        device: where the parts run.
    """
    if info.probe_outputs is None:
        return ""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        expected = load_file(folder / info.probe_outputs)
    except (OSError, SafetensorError) as error:
        return f"its self-check cannot be read: {error}"
    for name, probe in info.probes.items():
        part, reference = parts.get(name), expected.get(name)
        if part is None or reference is None:
            return f"its self-check of {name} is incomplete"
        unet = unets["refiner" if name.startswith("refiner/") else "base"]
        try:
            output = part(probe_inputs(name, probe, unet, latent_channels, device)).float().cpu()
        except (RuntimeError, ValueError) as error:
            return f"{name} fails its self-check: {error}"
        if reason := _differs(output, reference.float(), probe.psnr_db):
            return f"{name} fails its self-check: {reason}"
    return ""


def _differs(output: torch.Tensor, reference: torch.Tensor, least_db: float) -> str:
    if output.shape != reference.shape:
        return f"its output is {list(output.shape)}, not {list(reference.shape)}"
    if not output.isfinite().all():
        return "its output is not finite"
    psnr = psnr_db(output, reference)
    if psnr < least_db:
        return f"its output is {psnr:.1f} dB from the original's, {least_db:.0f} dB are needed"
    return ""
