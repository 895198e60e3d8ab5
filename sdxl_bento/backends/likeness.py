"""How close an output is to its reference. Importing this module does not import torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def psnr_of_error(mean_square: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite where there is no error.

    Args:
        mean_square: mean of the squared differences.
        peak: range of the signal, in the same units.
    """
    if mean_square == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_square) if peak else -math.inf


def psnr_db(output: torch.Tensor, reference: torch.Tensor) -> float:
    """PSNR of two tensors of one shape, with the range of `reference` as the peak."""
    mean_square = float((output.double() - reference.double()).square().mean())
    return psnr_of_error(mean_square, float(reference.max() - reference.min()))
