"""The dtype of a VAE's decoder: the narrowest that keeps within its threshold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from export.check import decoder_dtype
from export.check.decoder_dtype import pick_vae_dtype
from export.check.parity import LEAST_PSNR_DB
from sdxl_bento.dtypes import torch_dtype
from sdxl_bento.manifest import WeightDtype

CPU = torch.device("cpu")


class Vae:
    """Encodes by averaging blocks; what it decodes is off by `error`."""

    def __init__(self, dtype: torch.dtype, error: float) -> None:
        self.dtype = dtype
        self.error = error
        self.encoded: list[torch.Tensor] = []
        self.decoded: list[torch.Tensor] = []
        self.config = SimpleNamespace(block_out_channels=(8, 8, 8), scaling_factor=0.5)

    def encode(self, pictures: torch.Tensor) -> Any:
        self.encoded.append(pictures)
        cells = torch.nn.functional.avg_pool2d(pictures, 4)
        latents = torch.cat([cells, cells[:, :1]], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: torch.Tensor) -> Any:
        self.decoded.append(latents)
        sample = latents[:, :3].float().clamp(-1, 1)
        return SimpleNamespace(sample=(sample + self.error).to(self.dtype))


class Folder:
    """A written decoder: what it is off by in each dtype, and the VAEs that were loaded from it."""

    def __init__(self) -> None:
        self.errors = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 0.0)
        self.loaded: list[Vae] = []

    def load(self, path: Path, dtype: torch.dtype, device: torch.device) -> Vae:
        self.loaded.append(Vae(dtype, self.errors[dtype]))
        return self.loaded[-1]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Folder:
    written = Folder()
    monkeypatch.setattr(decoder_dtype, "load_component", written.load)
    return written


def off_by(psnr_db: float) -> float:
    """An error of all pixels, of a range of 2, that gives this PSNR."""
    return float(2 / 10 ** (psnr_db / 20))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_dtype_that_was_asked_for_where_it_will_do(folder: Folder, dtype: WeightDtype) -> None:
    assert pick_vae_dtype(Path(), dtype, CPU) == dtype
    assert [vae.dtype for vae in folder.loaded] == [torch.float32, torch_dtype(dtype)]


def test_float32_is_not_tried(folder: Folder) -> None:
    assert pick_vae_dtype(Path(), "fp32", CPU) == "fp32"
    assert not folder.loaded


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_a_decoder_that_overflows_computes_in_another(folder: Folder, error: float) -> None:
    folder.errors[torch.float16] = error
    assert pick_vae_dtype(Path(), "fp16", CPU) == "bf16"
    folder.errors[torch.bfloat16] = error
    assert pick_vae_dtype(Path(), "fp16", CPU) == "fp32"
    assert pick_vae_dtype(Path(), "bf16", CPU) == "fp32"


@pytest.mark.parametrize(("margin_db", "expected"), [(3.0, "fp16"), (-3.0, "bf16")])
def test_the_threshold_decides(folder: Folder, margin_db: float, expected: str) -> None:
    folder.errors[torch.float16] = off_by(LEAST_PSNR_DB["fp16"] + margin_db)
    assert pick_vae_dtype(Path(), "fp16", CPU) == expected


def test_plain_noisy_and_random_latents_are_tried(folder: Folder) -> None:
    pick_vae_dtype(Path(), "fp16", CPU)
    original, tried = folder.loaded
    (pictures,) = original.encoded
    assert pictures.shape == (4, 3, 128, 128)  # 32 cells of 4 pixels
    white, black, ramp, noise = pictures
    assert bool((white == 1).all()) and bool((black == -1).all())
    assert ramp[0, 0].tolist() == pytest.approx(torch.linspace(-1, 1, 128).tolist())
    assert bool((ramp == ramp[0, 0]).all())
    assert -1 <= float(noise.min()) < -0.99 and 0.99 < float(noise.max()) <= 1
    (latents,) = original.decoded
    assert latents.shape == (5, 4, 32, 32)
    assert float(latents[4].std()) == pytest.approx(2, rel=0.05)  # over the scaling factor
    assert torch.equal(tried.decoded[0], latents.to(torch.float16))
