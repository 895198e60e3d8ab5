"""The model as diffusers wrote it, run by PyTorch without compilation. Runs everywhere."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from sdxl_bento.backends.base import UNetInputs
from sdxl_bento.engine.request import Stage

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora import LoraPool
    from sdxl_bento.diffusion.model import Model


class EagerBackend:
    """diffusers' own modules; adapters differ from row to row."""

    name = "eager"
    mixes_adapters = True

    def __init__(self, model: Model, adapters: LoraPool, tile_pixels: int) -> None:
        self._model = model
        self._adapters = adapters
        self._tile_pixels = tile_pixels

    def denoise(self, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
        unet = self._model.pipeline(stage).unet
        # Adapters are trained for the base model; the refiner runs as it is.
        base = stage is Stage.BASE
        with self._adapters.applied("unet", inputs.mixes) if base else nullcontext():
            prediction: torch.Tensor = unet(
                inputs.sample,
                inputs.timestep,
                encoder_hidden_states=inputs.encoder_hidden_states,
                added_cond_kwargs={
                    "text_embeds": inputs.text_embeds,
                    "time_ids": inputs.time_ids,
                },
                return_dict=False,
            )[0]
        return prediction

    def decode(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        vae = self._model.pipeline(stage).vae
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.use_tiling = latents.shape[-1] * latents.shape[-2] * scale**2 > self._tile_pixels
        pixels: torch.Tensor = vae.decode(
            self._model.unscale(stage, latents).to(vae.dtype), return_dict=False
        )[0]
        return pixels.float()

    def warm_up(self) -> None:
        """Nothing has a shape of its own here."""

    def unload(self) -> None:
        self._model.unload()
