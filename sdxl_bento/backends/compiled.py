"""A model whose UNets and VAE decoders were compiled, by whichever runtime.

What all runtimes share is here: rows with adapters run on the graph with slots and all others on
the plain one, whatever batch they are in; rows are padded to the numbers that a graph was built for
and split above the most it takes; pictures above a size are decoded in tiles. Parts that were not
compiled run as diffusers wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.backends.examples import draw_example
from sdxl_bento.backends.parts import MOST_ROWS, Part
from sdxl_bento.backends.slots import RANK_STEP, SlotLayout, SlotTable
from sdxl_bento.diffusion.backend import Mix, UNetInputs
from sdxl_bento.engine.request import Stage
from sdxl_bento.manifest import BackendInfo, Role

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora.pool import LoraPool
    from sdxl_bento.diffusion.model import Model

Tensors = dict[str, torch.Tensor]
_TABLES = ("down", "up")  # the inputs that have no row for each row of the batch


class CompiledBackend:
    """Compiled parts of one model; adapters differ from row to row."""

    def __init__(
        self,
        model: Model,
        adapters: LoraPool,
        info: BackendInfo,
        parts: Mapping[str, Part],
        tile_pixels: int,
    ) -> None:
        """
        Args:
            model: loaded without the weights of the compiled parts.
            adapters: its adapters, fitted to layers that have slots.
            info: what the manifest says of the backend.
            parts: by name, as in `info.artifacts`.
            tile_pixels: pictures with more pixels are decoded in tiles.
        """
        self.name: str = info.backend
        self._info = info
        self._model = model
        self._adapters = adapters
        self._parts = dict(parts)
        self._eager = EagerBackend(model, adapters, tile_pixels)
        # ONNX's `DynamicQuantizeLinear` takes one range for all rows together, so these would round
        # each other's numbers.
        self._rows_are_independent = (info.backend, info.quantization) != ("onnx", "int8")
        self._layout = SlotLayout(model.base.unet)
        self._slots = SlotTable(self._layout, model.placement.device, model.placement.dtype)
        for role in ("base", "refiner"):
            decoder = self._parts.get(f"{role}/vae_decoder")
            if decoder is not None:
                _replace_decoder(model.pipeline(_stage(role)).vae, decoder)

    def denoise(self, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
        name = "refiner/unet" if stage is Stage.REFINE else "base/unet"
        if name not in self._parts:
            return self._eager.denoise(stage, inputs)
        tensors = inputs.tensors()
        # Adapters are trained for the base model; the refiner runs as it is.
        mixed = [i for i, mix in enumerate(inputs.mixes) if mix] if stage is Stage.BASE else []
        if not mixed:
            return self._run(name, tensors)
        slotted = self._run_slots(_rows_of(tensors, mixed), [inputs.mixes[i] for i in mixed])
        plain = [i for i, mix in enumerate(inputs.mixes) if not mix]
        if not plain:
            return slotted
        # The two graphs round differently, so each row takes its own, whatever the others need.
        unmixed = self._run(name, _rows_of(tensors, plain))
        by_row = dict(zip(mixed, torch.split(slotted, 1), strict=True))
        by_row |= zip(plain, torch.split(unmixed, 1), strict=True)
        return torch.cat([by_row[i] for i in range(len(by_row))])

    def decode(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        role = "refiner" if stage is Stage.REFINE else "base"
        if f"{role}/vae_decoder" in self._parts:
            return self._eager.decode_together(stage, latents)
        return self._eager.decode(stage, latents)

    def warm_up(self) -> None:
        """Run each compiled part once in each shape that it has a graph of its own for.

        Raises:
            SDXLError, RuntimeError: a part does not run on this machine.
        """
        manifest = self._model.manifest
        scale = manifest.base.vae_scale_factor
        sizes = self._info.sizes or (manifest.base,)
        for name, part in self._parts.items():
            role: Role = "refiner" if name.startswith("refiner/") else "base"
            config = self._model.pipeline(_stage(role)).unet.config
            for size in sizes:
                cells = size.height // scale, size.width // scale
                if name.endswith("vae_decoder"):
                    part({"latents": self._zeros(1, manifest.base.latent_channels, *cells)})
                    continue
                for rows in self._info.rows or (1, 2):
                    blank = self._blank(role, config, rows, *cells)
                    if name.endswith("slots"):
                        blank |= self._blank_slots(rows)
                    part(blank)

    def unload(self) -> None:
        for part in self._parts.values():
            part.unload()
        self._parts.clear()
        self._eager.unload()

    def _run_slots(self, tensors: Tensors, mixes: Sequence[Mix]) -> torch.Tensor:
        """The base UNet for rows that all have adapters."""
        used = {adapter for mix in mixes for adapter, _ in mix}
        slots = self._slots.place(mixes, *self._adapters.factors("unet", used))
        tensors = tensors | {"slot": slots.slot, "down": slots.down, "up": slots.up}
        return self._run("base/unet_slots", tensors)

    def _run(self, name: str, tensors: Tensors) -> torch.Tensor:
        """Any number of rows, in forwards of as many as the part was built for."""
        part, rows = self._parts[name], len(tensors["sample"])
        most = max(self._info.rows, default=MOST_ROWS) if self._rows_are_independent else 1
        if rows <= most:
            return self._padded(part, tensors, rows)
        outputs = []
        for start in range(0, rows, most):
            chunk = {
                key: value if key in _TABLES else value[start : start + most]
                for key, value in tensors.items()
            }
            outputs.append(self._padded(part, chunk, min(most, rows - start)))
        return torch.cat(outputs)

    def _padded(self, part: Part, tensors: Tensors, rows: int) -> torch.Tensor:
        """Fill up to the next number of rows with copies of the last one."""
        padding = next((most for most in sorted(self._info.rows) if most >= rows), rows) - rows
        if not padding:
            return part(tensors)
        filled = {
            key: value
            if key in _TABLES
            else torch.cat([value, value[-1:].repeat_interleave(padding, 0)])
            for key, value in tensors.items()
        }
        return part(filled)[:rows]

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(
            shape, device=self._model.placement.device, dtype=self._model.placement.dtype
        )

    def _blank(self, role: Role, config: Any, rows: int, height: int, width: int) -> Tensors:
        """Zeros in the shapes of a UNet's inputs."""
        example = draw_example(role, config, rows, height, width)
        blank = {name: self._zeros(*tensor.shape) for name, tensor in example.items()}
        return blank | {"timestep": blank["timestep"].float()}

    def _blank_slots(self, rows: int) -> Tensors:
        return {
            "slot": torch.zeros(rows, dtype=torch.int64, device=self._model.placement.device),
            "down": self._zeros(2, RANK_STEP, self._layout.width_down),
            "up": self._zeros(2, RANK_STEP, self._layout.width_up),
        }


def _rows_of(tensors: Tensors, rows: Sequence[int]) -> Tensors:
    """Some rows of a batch, without the copy of an index to the device."""
    if len(rows) == len(tensors["sample"]):
        return tensors
    return {
        name: torch.cat([value[row : row + 1] for row in rows]) for name, value in tensors.items()
    }


def _stage(role: str) -> Stage:
    return Stage.REFINE if role == "refiner" else Stage.BASE


class _CompiledDecoder(nn.Module):
    """Stands where the VAE's decoder was, so that diffusers' tiling goes on around it."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = part

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self._part({"latents": latents})


def _replace_decoder(vae: Any, part: Part) -> None:
    vae.decoder = _CompiledDecoder(part)
    vae.post_quant_conv = nn.Identity()  # the compiled part has it inside
