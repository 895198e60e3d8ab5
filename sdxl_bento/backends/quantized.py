"""Linear layers with 8-bit weights, and which of a UNet's layers become such.

The numbers of a weight [out, in] are scaled for each output channel, symmetrically about zero, so
that the largest becomes the largest that eight bits hold (127 for int8, 448 for float8_e4m3fn).

    int8-weights   weights only: half the memory of 16 bits, the arithmetic stays as it was
    int8           activations too, scaled for each token as they come: integer products
    fp8            weights and activations in float8; the products need a Hopper or Ada GPU
                   (`torch._scaled_mm`), elsewhere they are emulated, which shows the error but not
                   the speed

What decides the picture most, or costs little, stays as it is: convolutions (the first, the last
and the shortcuts among them), the embeddings of time and size, and what attends to the prompt's 77
tokens.
"""

from __future__ import annotations

import re
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_bento.manifest import Quantization

LARGE_LAYERS: Final = re.compile(
    r"(attn1\.to_(q|k|v|qkv)|attn2\.to_q|attn\d\.to_out\.0|ff\.net\.(0\.proj|2)|proj_in|proj_out)$"
)
MULTIPLE: Final = 16  # of both sides of a matrix: what 8-bit tensor cores take
LEAST: Final = 1e-12  # of a scale's range, so that zeros stay zeros
INT8_MOST: Final = 127.0
FP8: Final = torch.float8_e4m3fn
FP8_MOST: Final = torch.finfo(FP8).max


def quantize_unet(unet: nn.Module, kind: Quantization) -> list[str]:
    """Replace the large linear layers of a diffusers UNet; names of those that were replaced.

    The UNet must be on its device and in its dtype already: casting it later would cast the 8-bit
    numbers too.
    """
    replaced = [name for name, module in unet.named_modules() if fits(name, module)]
    for name in replaced:
        parent, _, leaf = name.rpartition(".")
        linear = unet.get_submodule(name)
        setattr(unet.get_submodule(parent), leaf, LAYERS[kind].of(linear))
    return replaced


def fits(name: str, module: nn.Module) -> bool:
    """Whether a layer of a UNet is one that is quantized."""
    return (
        type(module) is nn.Linear
        and bool(LARGE_LAYERS.search(name))
        and module.in_features % MULTIPLE == 0
        and module.out_features % MULTIPLE == 0
    )


def quantize_weight(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit numbers [out, in] and scales [out] float32, with numbers x scales close to `weight`.

    Args:
        weight: [out, in], any floating dtype.
        kind: "int8" or "fp8".
    """
    numbers, scale = _quantize(weight.float(), INT8_MOST if kind == "int8" else FP8_MOST)
    return numbers, scale.squeeze(1)


def _quantize(x: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, k] float32 -> 8-bit numbers [n, k] and the scale of each row [n, 1]."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=LEAST) / most
    numbers = x / scale
    if most == INT8_MOST:
        return numbers.round().to(torch.int8), scale
    return numbers.clamp(-most, most).to(FP8), scale


class QuantizedLinear(nn.Linear):
    """[…, in] -> […, out] with 8-bit weights. It is a Linear, so that adapters fit it.

    Attributes:
        weight: [out, in] int8 or float8_e4m3fn.
        weight_scale: [out] float32.
        bias: [out] in the dtype of the activations, or None.
    """

    numbers: str  # "int8" or "fp8"

    @classmethod
    def of(cls, linear: nn.Module) -> QuantizedLinear:
        """The quantized form of a linear layer."""
        assert isinstance(linear, nn.Linear)
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=False)
        numbers, scale = quantize_weight(linear.weight.detach(), cls.numbers)
        layer.weight = nn.Parameter(numbers, requires_grad=False)
        layer.register_buffer("weight_scale", scale)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return layer.train(linear.training)

    weight_scale: torch.Tensor


class Int8WeightsLinear(QuantizedLinear):
    """Weights alone in int8; products and sums in the dtype of the activations."""

    numbers = "int8"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _DynamicLinear(QuantizedLinear):
    """Activations are quantized too, with a scale for each token."""

    most: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Contiguous: products of eight bits take the first matrix by rows only.
        tokens = x.reshape(-1, self.in_features).contiguous()
        numbers, scale = _quantize(tokens.float(), self.most)
        y = self._product(numbers, scale).to(x.dtype)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _product(self, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """[n, in] 8-bit, [n, 1] -> [n, out] with both scales applied."""
        raise NotImplementedError


class Int8Linear(_DynamicLinear):
    """Integer products (`torch._int_mm`), summed in int32. CUDA wants 17 tokens or more."""

    numbers = "int8"
    most = INT8_MOST

    def _product(self, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        sums = torch._int_mm(numbers, self.weight.t())
        return sums.float() * scale * self.weight_scale


class Fp8Linear(_DynamicLinear):
    """float8 products with a scale for each token and each output channel."""

    numbers = "fp8"
    most = FP8_MOST

    def _product(self, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if numbers.is_cuda:
            # bfloat16 is what row-wise scales come out in (cuBLASLt, CUTLASS).
            return torch._scaled_mm(
                numbers,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.weight_scale[None],
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
        sums = F.linear(numbers.float(), self.weight.float())
        return sums * scale * self.weight_scale


# int8-static is missing: it is a matter of ONNX graphs.
LAYERS: Final[dict[Quantization, type[QuantizedLinear]]] = {
    "int8-weights": Int8WeightsLinear,
    "int8": Int8Linear,
    "fp8": Fp8Linear,
}
