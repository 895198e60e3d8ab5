"""The networks that are compiled, as `torch.export` programs with dynamic rows and sizes.

| part | inputs | output |
|---|---|---|
| `<role>/unet` | sample [R, 4, h, w], timestep [R] float32, encoder_hidden_states [R, 77, C], text_embeds [R, P], time_ids [R, 6 or 5] | [R, 4, h, w] |
| `<role>/unet_slots` | those of `<role>/unet`, slot [R] int64, down [S, r, D], up [S, r, U] | [R, 4, h, w] |
| `<role>/vae_decoder` | latents [B, 4, h, w] | [B, 3, 8h, 8w] |

All inputs but `timestep` and `slot` have the dtype of the module. `<role>` is base or refiner.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from sdxl_bento.backends.examples import draw_example as draw_example  # re-exported
from sdxl_bento.backends.examples import slot_example as slot_example
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.backends.slots import SlotLayout, Slots, SlottedLayers
from sdxl_bento.manifest import Role

MOST_SLOTS = 257
MOST_RANK = 4096
MOST_CELLS = 512  # of a latent's side


@dataclass(frozen=True)
class Graph:
    """A module to trace.

    Attributes:
        part: its name, as in "base/unet".
        module: to trace.
        inputs: example inputs, in the order of the module's `forward`.
        dynamic: for each input its dimensions of variable size, by index.
    """

    part: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, Any]]

    @property
    def layout(self) -> SlotLayout:
        """Where the adapters of each layer stand in the slots' inputs.

        Raises:
            TypeError: the graph takes no adapters.
        """
        if not isinstance(self.module, UNetSlots):
            raise TypeError(f"{self.part} takes no adapters")
        return self.module.layout

    def trace(self) -> ExportedProgram:
        """The traced program; it holds the module's weights."""
        with torch.no_grad():
            return torch.export.export(
                self.module.eval(),
                (),
                dict(self.inputs),
                dynamic_shapes={name: dict(sides) for name, sides in self.dynamic.items()},
            )


class UNetRows(nn.Module):
    """diffusers' UNet with tensors alone as inputs, which all have a row for each output row."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        prediction: torch.Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return prediction


class UNetSlots(UNetRows):
    """The UNet with three more inputs, by which each row gets its own adapters."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._layers = SlottedLayers(unet)
        self.layout = self._layers.layout

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        slot: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        with self._layers.reading(Slots(slot, down, up)):
            return super().forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids)


class Decoder(nn.Module):
    """The VAE's decoder with the convolution before it. It takes latents that are unscaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        pixels: torch.Tensor = self.decoder(latents)
        return pixels


def unet_graph(role: Role, unet: Any, cells: int, *, slots: bool = False) -> Graph:
    """The graph of a UNet.

    Args:
        role: base or refiner.
        unet: diffusers' `UNet2DConditionModel`. It is changed, so no other code may use it.
        cells: side of the example's latents. The graph takes any size of which every level of the
            UNet has whole cells.
        slots: whether the graph takes adapters.
    """
    inputs = unet_example(role, unet, rows=2, height=cells, width=cells)
    rows = Dim("rows", min=1, max=MOST_ROWS)
    height, width = _any_size(unet) if role == "refiner" else _whole_sizes(unet)
    dynamic: dict[str, dict[int, Any]] = {name: {0: rows} for name in inputs}
    dynamic["sample"] |= {2: height, 3: width}
    if not slots:
        return Graph(f"{role}/unet", UNetRows(unet), inputs, dynamic)
    module = UNetSlots(unet)
    inputs |= slot_example(module.layout, rows=2, like=inputs["sample"])
    table = {0: Dim("slots", min=2, max=MOST_SLOTS), 1: Dim("rank", min=2, max=MOST_RANK)}
    dynamic |= {"slot": {0: rows}, "down": table, "up": table}
    return Graph(f"{role}/unet_slots", module, inputs, dynamic)


def _whole_sizes(unet: Any) -> tuple[Any, Any]:
    """Sides of which every level of the UNet has whole cells."""
    cell = 2 ** (len(unet.config.block_out_channels) - 1)
    most = MOST_CELLS // cell
    return cell * Dim("height", min=1, max=most), cell * Dim("width", min=1, max=most)


def _any_size(unet: Any) -> tuple[Any, Any]:
    """Dynamic sides of any size.

    A refiner has more levels than its base model, so a size that has whole cells on every level of
    the base need not have them on the refiner's. diffusers then passes the size of each level to
    the upsampling. It does so where a side is no multiple of 2 ** num_upsamplers, which no side is
    once that number is set high enough.
    """
    unet.num_upsamplers = MOST_CELLS.bit_length()
    return Dim("height", min=9, max=MOST_CELLS), Dim("width", min=9, max=MOST_CELLS)


def decoder_graph(role: Role, vae: Any, cells: int) -> Graph:
    """The graph of a VAE's decoder.

    Args:
        role: base or refiner.
        vae: diffusers' `AutoencoderKL`.
        cells: side of the example's latents; the graph takes any size.
    """
    parameter = next(vae.decoder.parameters())
    latents = torch.randn(
        2, vae.config.latent_channels, cells, cells, device=parameter.device, dtype=parameter.dtype
    )
    sides: dict[int, Any] = {0: Dim("batch", min=1, max=MOST_ROWS)}
    sides |= {2: Dim("height", min=2, max=MOST_CELLS), 3: Dim("width", min=2, max=MOST_CELLS)}
    return Graph(f"{role}/vae_decoder", Decoder(vae), {"latents": latents}, {"latents": sides})


def unet_example(
    role: Role, unet: Any, rows: int, height: int, width: int
) -> dict[str, torch.Tensor]:
    """Random inputs for a UNet, on its device and in its dtype; equal for equal shapes.

    `height` and `width` are in latent cells.
    """
    parameter = next(unet.parameters())
    drawn = draw_example(role, unet.config, rows, height, width)
    return {
        name: tensor.to(parameter.device, None if name == "timestep" else parameter.dtype)
        for name, tensor in drawn.items()
    }
