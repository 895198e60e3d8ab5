"""Ways to give each row of a batch its own adapters, for `benchmarks/lora.py`.

gathered   what `sdxl_bento.diffusion.lora.layers` does: batched products over factors gathered
           by blocks of rows; one grouped convolution
looped     for each run of rows with one mix, a product over that slice of the batch
masked     all adapters side by side in one wide product; what is not a row's own is zeroed
peft       PEFT's own way: `adapter_names`, set by a pre-hook on every layer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.layers import Composition, LayerRows, Mix, Mixed

Adapters = Mapping[str, Mapping[str, LowRank]]


class Looped(LayerRows):
    pieces: list[tuple[torch.Tensor, torch.Tensor]]

    def gather(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.pieces = [run.mixed.factors(x, run.mixed.rank, self.arrange) for run in self.runs]
        return self.pieces[0]

    def add(self, x: torch.Tensor, y: torch.Tensor, *_: torch.Tensor) -> None:
        for run, (down, up) in zip(self.runs, self.pieces, strict=True):
            mine = slice(run.start - self.start, run.stop - self.start)
            y[mine] += _product(self.layer, _hidden(self.layer, x[mine], down), up)


class Masked(LayerRows):
    mask: torch.Tensor

    def gather(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixes = {id(run.mixed): run.mixed for run in self.runs}
        pieces = [mixed.factors(x, mixed.rank, self.arrange) for mixed in mixes.values()]
        down = torch.cat([down for down, _ in pieces])
        self.mask = x.new_zeros(len(x), len(down))
        column = {}
        width = 0
        for key, mixed in mixes.items():
            column[key] = slice(width, width + mixed.rank)
            width += mixed.rank
        for run in self.runs:
            mine = slice(run.start - self.start, run.stop - self.start)
            self.mask[mine, column[id(run.mixed)]] = 1
        return down, torch.cat([up for _, up in pieces], 1)

    def add(self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        hidden = _hidden(self.layer, x, down)
        if isinstance(self.layer, nn.Conv2d):
            hidden *= self.mask[:, :, None, None]
        else:
            hidden *= self.mask.view(len(x), *[1] * (hidden.dim() - 2), -1)
        y += _product(self.layer, hidden, up)


def _hidden(module: nn.Module, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
    return F.linear(x, down)


def _product(module: nn.Module, hidden: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Conv2d):
        return F.conv2d(hidden, up[:, :, None, None])
    return F.linear(hidden, up)


class OurWay:
    """`gathered`, or the same frame around another way to compute a layer's rows."""

    def __init__(
        self, unet: nn.Module, adapters: Adapters, rows_type: type[LayerRows] | None
    ) -> None:
        self._modules, self._adapters = Modules(unet), adapters
        self._mixes: dict[Mix, Mixed] = {}
        self._kind = {"rows_type": lambda _: rows_type} if rows_type else {}

    def prepare(self, rows: Sequence[Mix]) -> Composition:
        for mix in rows:
            if mix not in self._mixes:
                self._mixes[mix] = Mixed(self._adapters, mix)
        return Composition(self._modules, self._mixes, rows, **self._kind)

    def active(self, prepared: Composition) -> AbstractContextManager[None]:
        return prepared.active()


class PeftWay:
    def __init__(self, unet: Any, adapters: Adapters) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        for name, layers in adapters.items():
            rank = next(iter(layers.values())).rank
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers))
            inject_adapter_in_model(config, unet, adapter_name=name)
        self._layers: list[Any] = [m for m in unet.modules() if isinstance(m, LoraLayer)]
        named: dict[str, Any] = {n: m for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
        for name, layers in adapters.items():
            for layer, part in layers.items():
                named[layer].lora_A[name].weight.data = part.down
                up: torch.Tensor = named[layer].lora_B[name].weight
                up.data = part.up.view(up.shape)

    def prepare(self, rows: Sequence[Mix]) -> list[str]:
        # One adapter a row is all that PEFT can do, with one scale for each adapter.
        scales = dict(pair for mix in rows for pair in mix)
        for layer in self._layers:
            for name, scale in scales.items():
                layer.set_scale(name, scale)
        return [mix[0][0] if mix else "__base__" for mix in rows]

    @contextmanager
    def active(self, prepared: list[str]) -> Iterator[None]:
        def name_them(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"adapter_names": prepared}

        handles = [
            layer.register_forward_pre_hook(name_them, with_kwargs=True) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def make(contender: str, unet: nn.Module, adapters: Adapters) -> OurWay | PeftWay:
    """May change the UNet (PEFT does): give it a copy."""
    if contender == "peft":
        return PeftWay(unet, adapters)
    kinds: dict[str, type[LayerRows] | None] = {
        "gathered": None,
        "looped": Looped,
        "masked": Masked,
    }
    return OurWay(unet, adapters, kinds[contender])


CONTENDERS = ("peft", "looped", "masked", "gathered")
