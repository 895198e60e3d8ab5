"""PSNR and SSIM: what they are of, and agreement with scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from export.errors import VerificationError
from export.likeness import (
    compare_outputs,
    compare_pictures,
    picture_psnr_db,
    psnr_db,
    psnr_of_error,
    ssim,
)


def test_equal_outputs_have_no_distance() -> None:
    output = torch.randn(2, 4, 8, 8)
    figure = compare_outputs("base/unet", output, output.clone())
    assert (figure.max_abs_error, figure.psnr_db) == (0.0, None)


def test_the_distance_is_in_db_of_the_references_range() -> None:
    expected = torch.linspace(-1, 1, 100)
    figure = compare_outputs("base/unet", expected + 0.02, expected)
    assert figure.psnr_db == pytest.approx(40.0, abs=0.01)
    assert figure.max_abs_error == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.full((4,), float("nan")), "base/unet: its output is not finite"),
        (torch.zeros(5), r"base/unet: its output is \[5\], not \[4\]"),
    ],
)
def test_what_cannot_be_compared_fails(found: torch.Tensor, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        compare_outputs("base/unet", found, torch.ones(4))


def noise(seed: int, amount: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.clip(127 + amount * random.normal(0, 40, (48, 40, 3)), 0, 255)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    picture = noise(0)
    assert ssim(picture, picture) == pytest.approx(1.0)
    little, much = (ssim(picture, picture + noise(1, a) - 127) for a in (0.1, 1.0))
    assert 1.0 > little > 0.9 > much > 0.0


def test_ssim_of_flat_pictures_is_what_the_formula_gives() -> None:
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 100.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(black, grey) == pytest.approx(c1 / (100.0**2 + c1))


def test_pictures_are_compared_by_their_pixels() -> None:
    first = Image.new("RGB", (16, 16), (100, 100, 100))
    second = Image.new("RGB", (16, 16), (110, 110, 110))
    assert compare_pictures("a", 0, first, first).psnr_db is None
    assert compare_pictures("a", 0, first, second).psnr_db == pytest.approx(28.13, abs=0.01)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(noise(seed).astype(np.uint8))


@pytest.mark.parametrize("amount", [0.02, 0.3, 2.0])
def test_both_measures_are_those_of_scikit_image(amount: float) -> None:
    first = noise(0)
    second = np.clip(first + noise(1, amount) - 127, 0, 255)
    reference = structural_similarity(
        first, second, channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(first, second) == pytest.approx(reference, abs=1e-9)
    mean_square = float(((first - second) ** 2).mean())
    expected = peak_signal_noise_ratio(first, second, data_range=255)
    assert psnr_of_error(mean_square, 255) == pytest.approx(expected, abs=1e-9)


def test_a_constant_reference_has_no_range() -> None:
    assert psnr_db(torch.ones(4), torch.zeros(4)) == -math.inf
    assert psnr_db(torch.zeros(4), torch.zeros(4)) == math.inf


def test_the_figure_of_a_picture_is_rounded_from_both_measures() -> None:
    figure = compare_pictures("a circle", 3, picture(0), picture(1))
    assert (figure.prompt, figure.seed) == ("a circle", 3)
    assert figure.psnr_db == round(picture_psnr_db(picture(0), picture(1)), 2)
    pixels = [np.asarray(picture(seed), dtype=np.float64) for seed in (0, 1)]
    assert figure.ssim == round(ssim(*pixels), 4)


def test_pictures_of_two_sizes_cannot_be_compared() -> None:
    small, large = Image.new("RGB", (16, 16)), Image.new("RGB", (32, 16))
    with pytest.raises(VerificationError, match=r"'a' \(seed 0\) is 32x16 pixels, not 16x16"):
        compare_pictures("a", 0, large, small)
