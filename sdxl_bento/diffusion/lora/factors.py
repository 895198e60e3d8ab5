"""The factors of one layer, ready to be applied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_bento.diffusion.lora.alphas import AlphaConfig
from sdxl_bento.diffusion.lora.fitting import Fit
from sdxl_bento.errors import AdapterMismatch


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one layer: `up @ down` for each unit of scale.

    Attributes:
        down: [r, in] for a linear layer, [r, in, kh, kw] for a convolution; the layer's dtype.
        up: [out, r], alpha / r folded in; the layer's dtype.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


def factors(
    name: str, fit: Fit, tensors: Mapping[str, torch.Tensor], config: AlphaConfig
) -> LowRank:
    """The factors of a layer, scaled and in its dtype, on its device.

    Args:
        name: of the adapter, for messages.
        fit: the layer and its module.
        tensors: the file's.
        config: of the file's header, for a layer without an alpha of its own.

    Raises:
        AdapterMismatch: NaN, infinity, or numbers that the layer's dtype does not reach.
    """
    parts = {part: tensors[key] for part, key in fit.layer.parts.items()}
    dtype, device = _place(fit.module, parts["down"].dtype)
    down = _joined(parts["down"].float(), parts.get("mid"))
    rank = down.shape[0]
    if isinstance(fit.module, nn.Linear):
        down = down.flatten(1)
    elif down.dim() == 2:
        down = down[:, :, None, None]
    up = parts["up"].float().flatten(1) * _scaling(name, fit, parts, rank, config)
    down, up = down.to(dtype), up.to(dtype)
    for part, factor in (("down", down), ("up", up)):
        if not torch.isfinite(factor).all():
            reason = f"NaN, infinity or numbers beyond {str(dtype).removeprefix('torch.')}"
            raise AdapterMismatch(name, [fit.layer.parts[part]], reason)
    return LowRank(down.to(device).contiguous(), up.to(device).contiguous())


def _joined(down: torch.Tensor, mid: torch.Tensor | None) -> torch.Tensor:
    """[r, in, …], with LoCon's third factor [r, r, kh, kw], if there is one, as its kernel."""
    if mid is None:
        return down
    return torch.einsum("abhw,bi->aihw", mid.float(), down.flatten(1))


def _scaling(
    name: str, fit: Fit, parts: Mapping[str, torch.Tensor], rank: int, config: AlphaConfig
) -> float:
    """alpha / r: by the layer's own tensor, else by the header, else 1."""
    if "alpha" not in parts:
        return config.scaling(fit.layer.target, fit.name, rank)
    alpha = float(parts["alpha"].item())
    if not math.isfinite(alpha):
        raise AdapterMismatch(name, [fit.layer.parts["alpha"]], f"alpha is {alpha}")
    return alpha / rank


def _place(module: nn.Linear | nn.Conv2d, stored: torch.dtype) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a layer's factors, which are `stored` in the file in another one."""
    weight = module.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    # Quantised layers have weights that one cannot compute in; offloaded ones have no device.
    for dtype in (weight.dtype, stored):
        if dtype.is_floating_point and dtype.itemsize > 1:
            return dtype, device
    return torch.float32, device
