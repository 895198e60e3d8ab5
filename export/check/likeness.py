"""How far an output is from the one it should be."""

from __future__ import annotations

import math

import torch

from export.errors import VerificationError
from sdxl_bento.manifest import ParityFigure


def psnr_db(found: torch.Tensor, expected: torch.Tensor) -> float:
    """PSNR with the range of `expected` as its peak; infinite where both are equal."""
    error = float((found.double() - expected.double()).square().mean())
    if error == 0:
        return math.inf
    peak = float(expected.max() - expected.min())
    return 10 * math.log10(peak**2 / error) if peak else -math.inf


def compare(
    part: str, found: torch.Tensor, expected: torch.Tensor, against: str = "eager fp32"
) -> ParityFigure:
    """The figure that a manifest holds of a part's output.

    Raises:
        VerificationError: the output has another shape, or is not finite.
    """
    if found.shape != expected.shape:
        raise VerificationError(
            f"{part}: its output is {list(found.shape)}, not {list(expected.shape)}"
        )
    if not found.isfinite().all():
        raise VerificationError(f"{part}: its output is not finite")
    psnr = psnr_db(found, expected)
    return ParityFigure(
        part=part,
        against=against,
        max_abs_error=(found - expected).abs().max().item(),
        psnr_db=None if math.isinf(psnr) else round(psnr, 2),
    )
