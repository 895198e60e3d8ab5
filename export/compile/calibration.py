"""Measurement of the ranges of activations in a UNet's layers, for static quantization.

The model draws a few pictures in float32 with the service's own engine. So the ranges cover what
occurs in service: latents at every level of noise, with prompts and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export.check.pictures import PROMPTS, draw
from export.compile.onnx_graph.static import LayerRanges, Ranges
from sdxl_bento.manifest import Role

if TYPE_CHECKING:
    from sdxl_bento.serving.loaded import Loaded

STEPS = 10  # from pure noise to none


def calibrate(folder: Path) -> Mapping[Role, Ranges]:
    """Ranges of the layers of base and refiner, over pictures of `PROMPTS`.

    Args:
        folder: of a written model with its manifest.

    Raises:
        VerificationError: the model cannot draw.
    """
    ranges: dict[Role, dict[str, LayerRanges]] = {}

    def watch(loaded: Loaded) -> None:
        for role in ("base", "refiner"):
            pipeline = getattr(loaded.served.model, role)
            if pipeline is not None:
                ranges[role] = watch_layers(pipeline.unet)

    draw(folder, "eager", PROMPTS, steps=STEPS, refine=True, prepare=watch)
    return ranges


def watch_layers(unet: nn.Module) -> dict[str, LayerRanges]:
    """The ranges of the UNet's layers. They are widened by every later forward of the UNet."""
    ranges: dict[str, LayerRanges] = {}

    def hook(name: str) -> Any:
        def widen(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            known = ranges.get(name, LayerRanges())
            ranges[name] = LayerRanges(
                known.input.wider(*_ends(inputs[0])), known.output.wider(*_ends(output))
            )

        return widen

    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(hook(name))
    return ranges


def _ends(tensor: torch.Tensor) -> tuple[float, float]:
    low, high = tensor.aminmax()
    return low.item(), high.item()
