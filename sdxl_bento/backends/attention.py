"""Which kernel computes a UNet's attention, by diffusers' dispatcher.

diffusers' `set_attention_backend` passes over this UNet: its processor calls PyTorch's attention
itself and knows no backend (diffusers 0.42). So the UNet gets a processor that asks the dispatcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

import torch

from sdxl_bento.errors import ConfigurationError

NATIVE: Final = "native"  # PyTorch chooses
# Names of diffusers' dispatcher, and the package that each needs beside torch.
PACKAGES: Final[Mapping[str, str | None]] = {
    NATIVE: None,
    "_native_flash": None,
    "_native_cudnn": None,
    "_native_efficient": None,
    "flash": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "xformers": "xformers",
    "sage": "sageattention",
}
_ON_CPU: Final = (NATIVE, "_native_flash")


def installed(device: torch.device) -> list[str]:
    """Backends that may run on this machine; whether they take a UNet's shapes is to be tried."""
    if device.type == "cpu":
        return list(_ON_CPU)
    return [name for name, package in PACKAGES.items() if package is None or find_spec(package)]


def apply_attention(unet: Any, name: str) -> None:
    """Let a diffusers UNet compute its attention by the backend `name`.

    Raises:
        ConfigurationError: no such backend is known, or its package is not installed.
    """
    if name not in PACKAGES:
        raise ConfigurationError(
            f"no attention backend is called {name!r}; known: {', '.join(PACKAGES)}"
        )
    package = PACKAGES[name]
    if package is not None and find_spec(package) is None:
        raise ConfigurationError(
            f"the attention backend {name!r} needs the package {package}, which is not installed; "
            "install it, or export the model again with --attention native"
        )
    unet.set_attn_processor(DispatchedAttention(name))


class DispatchedAttention:
    """diffusers' `AttnProcessor2_0` for a UNet's transformer blocks, by a named backend."""

    def __init__(self, backend: str) -> None:
        self._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """hidden_states [R, n, C], encoder_hidden_states [R, 77, D] -> [R, n, C]."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(*x.shape[:-1], attn.heads, -1)

        attend: Any = dispatch_attention_fn
        mixed: torch.Tensor = attend(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(context)),
            heads(attn.to_v(context)),
            attn_mask=attention_mask,
            backend=self._attention_backend,
        )
        out: torch.Tensor = attn.to_out[0](mixed.flatten(2).to(hidden_states.dtype))
        return out


@contextmanager
def native_kernels(name: str) -> Iterator[None]:
    """Attention that is compiled inside prefers the kernel of this one of PyTorch's backends.

    A compiled graph names PyTorch's kernels and no other package's; other names change nothing.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    wanted = {
        "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
        "_native_flash": SDPBackend.FLASH_ATTENTION,
        "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    }.get(name)
    if wanted is None:
        yield
        return
    order.sort(key=lambda backend: backend is not wanted)
    with sdpa_kernel(order, set_priority=True):
        yield
