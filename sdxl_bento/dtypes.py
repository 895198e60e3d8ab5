"""The floating-point types that weights are stored in and that models compute in.

The project names them as Hugging Face does for file variants ("fp16"). PyTorch and safetensors
have names of their own; this table is the only place that relates them. Importing this module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sdxl_bento.manifest import WeightDtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DtypeNames:
    """How other libraries spell one type: an attribute of `torch`, a header of safetensors."""

    torch: str
    safetensors: str


DTYPES: Final[Mapping[WeightDtype, DtypeNames]] = {
    "fp32": DtypeNames("float32", "F32"),
    "fp16": DtypeNames("float16", "F16"),
    "bf16": DtypeNames("bfloat16", "BF16"),
}
FROM_SAFETENSORS: Final[Mapping[str, WeightDtype]] = {
    names.safetensors: dtype for dtype, names in DTYPES.items()
}


def torch_dtype(dtype: WeightDtype) -> torch.dtype:
    """The type as PyTorch has it."""
    import torch

    converted: torch.dtype = getattr(torch, DTYPES[dtype].torch)
    return converted


def dtype_of(converted: torch.dtype) -> WeightDtype:
    """The name of one of PyTorch's types.

    Raises:
        ValueError: it is none of those that weights are stored in.
    """
    name = str(converted).removeprefix("torch.")
    for dtype, names in DTYPES.items():
        if names.torch == name:
            return dtype
    raise ValueError(f"{name} is none of {', '.join(DTYPES)}")
