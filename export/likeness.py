"""Measures of how close an output is to its reference: PSNR and SSIM.

Every figure of likeness that the project writes, in manifests, tests and benchmarks, is computed
here, or in `sdxl_bento.backends.likeness`, which the service needs too. Importing this module does
not import torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.errors import VerificationError
from sdxl_bento.backends.likeness import psnr_db as psnr_db  # re-exported
from sdxl_bento.backends.likeness import psnr_of_error as psnr_of_error
from sdxl_bento.manifest import ImageFigure, ParityFigure

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Floats = NDArray[np.float64]
PIXEL_PEAK = 255.0


def compare_outputs(
    part: str, output: torch.Tensor, reference: torch.Tensor, against: str = "eager fp32"
) -> ParityFigure:
    """The figure that a manifest holds of a part's output.

    Raises:
        VerificationError: the output has another shape, or is not finite.
    """
    if output.shape != reference.shape:
        raise VerificationError(
            f"{part}: its output is {list(output.shape)}, not {list(reference.shape)}"
        )
    if not output.isfinite().all():
        raise VerificationError(f"{part}: its output is not finite")
    psnr = psnr_db(output, reference)
    return ParityFigure(
        part=part,
        against=against,
        max_abs_error=(output - reference).abs().max().item(),
        psnr_db=None if math.isinf(psnr) else round(psnr, 2),
    )


def compare_pictures(prompt: str, seed: int, picture: Image, reference: Image) -> ImageFigure:
    """The figure that a manifest holds of a picture of `prompt`.

    Raises:
        VerificationError: the two pictures differ in size.
    """
    if picture.size != reference.size:
        raise VerificationError(
            f"the picture of {prompt!r} (seed {seed}) is {picture.size[0]}x{picture.size[1]} "
            f"pixels, not {reference.size[0]}x{reference.size[1]}"
        )
    a, b = _pixels(picture), _pixels(reference)
    psnr = psnr_of_error(float(np.square(a - b).mean()), PIXEL_PEAK)
    return ImageFigure(
        prompt=prompt,
        seed=seed,
        psnr_db=None if math.isinf(psnr) else round(psnr, 2),
        ssim=round(ssim(a, b), 4),
    )


def picture_psnr_db(picture: Image, reference: Image) -> float:
    """PSNR of two pictures of one size."""
    return psnr_of_error(float(np.square(_pixels(picture) - _pixels(reference)).mean()), PIXEL_PEAK)


def _pixels(picture: Image) -> Floats:
    return np.asarray(picture.convert("RGB"), dtype=np.float64)


def ssim(a: Floats, b: Floats) -> float:
    """Structural similarity of two pictures [H, W, 3] in 0 to 255, mean over the channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004:
    Gaussian window of 11 cells with sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: Floats) -> Floats:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, window, "valid")
        return x

    c1, c2 = (0.01 * PIXEL_PEAK) ** 2, (0.03 * PIXEL_PEAK) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())
