"""Attention and decoding in slices give what whole ones give."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import SlicedAttnProcessor

from benchmarks.full_size import TINY, serve
from export.model.graphs import unet_example
from sdxl_bento.diffusion.backend import Backend, UNetInputs
from sdxl_bento.diffusion.model import Model, Placement
from sdxl_bento.engine.request import Stage


@pytest.fixture
def tiny() -> tuple[Model, Backend]:
    served, _ = serve(Placement.choose("cpu", "fp32"), TINY)
    return served.model, served.backend


def outputs(model: Model, backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = unet_example("base", model.base.unet, rows=3, height=16, width=8)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = backend.denoise(Stage.BASE, UNetInputs(**inputs, mixes=[(), (), ()]))
        return prediction, backend.decode(Stage.BASE, latents)


def test_slices_give_what_the_whole_gives(tiny: tuple[Model, Backend]) -> None:
    model, backend = tiny
    wanted = outputs(model, backend)
    model.slice(attention=True, vae=True)
    assert model.base.vae.use_slicing
    processors = model.base.unet.attn_processors.values()
    assert {type(processor) for processor in processors} == {SlicedAttnProcessor}
    for found, whole in zip(outputs(model, backend), wanted, strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_nothing_is_sliced_unasked(tiny: tuple[Model, Backend]) -> None:
    model, _ = tiny
    before = dict(model.base.unet.attn_processors)
    model.slice(attention=False, vae=False)
    assert model.base.unet.attn_processors == before
    assert not model.base.vae.use_slicing


def test_a_compiled_unet_is_left_alone(tiny: tuple[Model, Backend]) -> None:
    model, _ = tiny
    before = dict(model.base.unet.attn_processors)
    torch.nn.Module.to(model.base.unet, "meta")  # as `Model.load` leaves it for compiled parts
    model.slice(attention=True, vae=True)
    assert model.base.unet.attn_processors == before
    assert model.base.vae.use_slicing
