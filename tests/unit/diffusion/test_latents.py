"""Latents between the UNet's scale and the VAE's: a factor, and statistics where a VAE has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdxl_bento.diffusion.model import Model
from sdxl_bento.engine.request import Stage

MEAN, STD = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 8.0, 16.0]
LATENTS = torch.arange(2 * 4 * 3 * 5, dtype=torch.float32).reshape(2, 4, 3, 5)


def model(**config: Any) -> Model:
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5, **config))
    whole = Model.__new__(Model)
    whole.base = SimpleNamespace(vae=vae)  # type: ignore[assignment]
    whole.refiner = None
    return whole


@pytest.mark.parametrize(
    "config",
    [{}, {"latents_mean": MEAN}, {"latents_std": STD}, {"latents_mean": None, "latents_std": STD}],
)
def test_without_both_statistics_there_is_the_factor_alone(config: dict[str, Any]) -> None:
    assert torch.equal(model(**config).unscale(Stage.BASE, LATENTS), LATENTS * 2)
    assert torch.equal(model(**config).rescale(Stage.BASE, LATENTS), LATENTS / 2)


def test_statistics_belong_to_the_channels() -> None:
    whole = model(latents_mean=MEAN, latents_std=STD)
    unscaled = whole.unscale(Stage.BASE, LATENTS)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = LATENTS[:, channel] * 2 * std + mean
        assert torch.allclose(unscaled[:, channel], expected)
    assert torch.allclose(whole.rescale(Stage.BASE, unscaled), LATENTS)
