"""The model as diffusers wrote it, run by PyTorch without compilation. Runs everywhere."""

from __future__ import annotations

from contextlib import nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdxl_bento.diffusion.backend import UNetInputs
from sdxl_bento.engine.request import Stage

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora.pool import LoraPool
    from sdxl_bento.diffusion.model import Model


class EagerBackend:
    """diffusers' own modules; adapters differ from row to row."""

    name = "eager"

    def __init__(self, model: Model, adapters: LoraPool, tile_pixels: int) -> None:
        self._model = model
        self._adapters = adapters
        self._tile_pixels = tile_pixels
        if model.placement.mode in ("cpu", "cuda"):  # offload has its own way of calling modules
            for pipeline in (model.base, model.refiner):
                if pipeline is not None:
                    _call_processors_directly(pipeline.unet)

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
        # One by one: kernels differ with the number of pictures, in bfloat16 by more than a level.
        return torch.cat([self.decode_together(stage, each) for each in torch.split(latents, 1)])

    def decode_together(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, in one forward: for a decoder that does not round by their number."""
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


def _call_processors_directly(unet: nn.Module) -> None:
    """diffusers looks up the signature of its attention processor at every call.

    That is 9 % of a small forward on a CPU, and the host's time on a GPU.
    """
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(_attend, module)  # type: ignore[method-assign]


def _attend(
    attention: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    mixed: torch.Tensor = attention.processor(
        attention,
        hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        attention_mask=attention_mask,
    )
    return mixed
