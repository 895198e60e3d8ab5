"""Adapters as inputs of a compiled UNet: every row names the slot that holds its mix.

A compiled graph cannot run hooks. So it takes three inputs more: `slot` [R], and two tables that
hold the factors of every layer side by side, `down` [S, r, D] and `up` [S, r, U]. Slot 0 is zeros,
for rows without adapters. Which columns belong to which layer is the `SlotLayout`, which follows
from the UNet's modules alone, so it is the same when the graph is traced and when it is run.
S and r are dynamic: other adapters, other ranks and other scales never recompile anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_bento.diffusion.backend import Mix

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora.factors import LowRank

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]
SHRINK_AFTER = 200  # batches in a row that need no more than half of the tables
RANK_STEP = 8  # ranks are padded to a multiple, so that graphs see few different shapes


@dataclass(frozen=True)
class SlotColumns:
    """Where one layer's factors lie in the tables."""

    down: slice
    up: slice


class SlotLayout:
    """The columns of every layer that can take an adapter: linear ones and convolutions."""

    def __init__(self, unet: nn.Module) -> None:
        self.columns: dict[str, SlotColumns] = {}
        self.width_down = self.width_up = 0
        for name, module in unet.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            down, up = _widths(module)
            self.columns[name] = SlotColumns(
                slice(self.width_down, self.width_down + down),
                slice(self.width_up, self.width_up + up),
            )
            self.width_down += down
            self.width_up += up


def _widths(module: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels * math.prod(module.kernel_size), module.out_channels


@dataclass(frozen=True)
class Slots:
    """The adapter inputs of one batch: slot [R] int64, down [S, r, D], up [S, r, U]."""

    slot: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor


class SlotTable:
    """Lays mixes into slots, and keeps them there from one batch to the next.

    A batch whose mixes are in the tables already costs one small index; a new mix is written into
    the slot that has not been used for the longest. Belongs to the engine's thread.
    """

    def __init__(self, layout: SlotLayout, device: torch.device, dtype: torch.dtype) -> None:
        self._layout = layout
        self._device, self._dtype = device, dtype
        # The last used come last. No ready-made cache: a batch's mixes must all stay, and what is
        # kept is a place in tables that grow.
        self._slots: dict[tuple[Mix, str], int] = {}
        self._too_large = 0  # batches in a row that needed no more than half
        self._empty()

    def place(
        self,
        rows: Sequence[Mix],
        adapters: Mapping[str, Mapping[str, LowRank]],
        fingerprints: Mapping[str, str],
    ) -> Slots:
        """The inputs for rows with these mixes.

        Args:
            rows: one mix for each row; () for none.
            adapters: name -> layer -> factors, of at least the adapters that the rows name.
            fingerprints: name -> hash of the adapter's file: one that has changed gets a new slot.
        """
        keys = {mix: (mix, _identity(mix, fingerprints)) for mix in dict.fromkeys(rows) if mix}
        rank = max((_rank(mix, adapters) for mix in keys), default=1)
        rank = -(-rank // RANK_STEP) * RANK_STEP
        self._shrink(len(keys), rank)
        self._grow(len(keys), rank)
        for key in keys.values():  # first those that stay, so that no newcomer takes their place
            if key in self._slots:
                self._slots[key] = self._slots.pop(key)
        for mix, key in keys.items():
            if key not in self._slots:
                slot = self._free()
                self._write(slot, mix, adapters)
                self._slots[key] = slot
        index = [self._slots[keys[mix]] if mix else 0 for mix in rows]
        return Slots(torch.tensor(index, device=self._device), self._down, self._up)

    def _empty(self) -> None:
        self._slots.clear()
        widths = self._layout.width_down, self._layout.width_up
        self._down, self._up = (
            torch.zeros(1, 0, width, device=self._device, dtype=self._dtype) for width in widths
        )

    def _shrink(self, mixes: int, rank: int) -> None:
        """Begin anew if it was long ago that the tables had to be so large.

        They take memory, and every row with adapters pays for the largest rank in them.
        """
        slots, held = self._down.shape[:2]
        if 2 * rank > held and 2 * (mixes + 1) > slots:
            self._too_large = 0
            return
        self._too_large += 1
        if self._too_large > SHRINK_AFTER:
            self._too_large = 0
            self._empty()

    def _grow(self, mixes: int, rank: int) -> None:
        """Make room for so many mixes of that rank; what lies in the tables stays."""
        slots = max(mixes + 1, len(self._down), 2)
        slots = 1 + (1 << (slots - 2).bit_length()) if slots > 2 else 2  # 1 + a power of two
        rank = max(rank, self._down.shape[1])
        if (slots, rank) == tuple(self._down.shape[:2]):
            return
        more = (0, 0, 0, rank - self._down.shape[1], 0, slots - len(self._down))
        self._down, self._up = F.pad(self._down, more), F.pad(self._up, more)

    def _free(self) -> int:
        """A slot without a mix; else that of the one that was not used for the longest."""
        unused = set(range(1, len(self._down))) - set(self._slots.values())
        if unused:
            return min(unused)
        return self._slots.pop(next(iter(self._slots)))

    def _write(self, slot: int, mix: Mix, adapters: Mapping[str, Mapping[str, LowRank]]) -> None:
        self._down[slot].zero_()
        self._up[slot].zero_()
        first = 0
        for name, scale in mix:
            layers = adapters[name]
            rank = max((part.rank for part in layers.values()), default=0)
            for layer, part in layers.items():
                columns = self._layout.columns[layer]
                ranks = slice(first, first + part.rank)
                self._down[slot, ranks, columns.down] = _flat(part.down).to(self._down)
                self._up[slot, ranks, columns.up] = (part.up.mT.float() * scale).to(self._up)
            first += rank


def _identity(mix: Mix, fingerprints: Mapping[str, str]) -> str:
    return " ".join(fingerprints[name] for name, _ in mix)


def _rank(mix: Mix, adapters: Mapping[str, Mapping[str, LowRank]]) -> int:
    return sum(max((p.rank for p in adapters[name].values()), default=0) for name, _ in mix)


def _flat(down: torch.Tensor) -> torch.Tensor:
    """[r, in] or [r, in, kh, kw] -> [r, D]; a convolution's taps first, as its layer wants them."""
    return down if down.dim() == 2 else down.permute(0, 2, 3, 1).flatten(1)


class SlottedLayers:
    """Forward hooks that add to each row of a UNet's layers what its slot holds.

    Made once for a UNet that is to be traced: what runs inside `reading` becomes part of the graph.
    """

    def __init__(self, unet: nn.Module) -> None:
        self.layout = SlotLayout(unet)
        self._slots: Slots | None = None
        modules = dict(unet.named_modules())
        for name, columns in self.layout.columns.items():
            modules[name].register_forward_hook(self._hook(columns))

    @contextmanager
    def reading(self, slots: Slots) -> Iterator[None]:
        """Forwards inside take their adapters from these."""
        self._slots = slots
        try:
            yield
        finally:
            self._slots = None

    def _hook(self, columns: SlotColumns) -> Hook:
        def add(
            module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            assert self._slots is not None
            slots = self._slots
            down = slots.down[:, :, columns.down].index_select(0, slots.slot)
            up = slots.up[:, :, columns.up].index_select(0, slots.slot)
            if isinstance(module, nn.Conv2d):
                return output + _conv(module, inputs[0], down, up)
            return output + _linear(inputs[0], down, up)

        return add


def _linear(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """x [R, in] or [R, n, in], down [R, r, in], up [R, r, out]."""
    if x.dim() == 2:
        return torch.bmm(torch.bmm(x[:, None], down.mT), up)[:, 0]
    return torch.bmm(torch.bmm(x, down.mT), up)


def _conv(module: nn.Conv2d, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """x [R, in, h, w], down [R, r, taps * in], up [R, r, out].

    A convolution with other weights in each row: first every tap's product with every cell, by one
    matrix product, then each tap's plane is shifted to its place and summed, which a convolution
    with ones does.
    """
    rows, rank = down.shape[:2]
    height, width = x.shape[2:]
    taps = math.prod(module.kernel_size)
    planes = torch.bmm(down.reshape(rows, rank * taps, module.in_channels), x.flatten(2))
    if taps == 1 and module.stride == (1, 1):
        return torch.bmm(up.mT, planes).view(rows, -1, height, width)
    shifts = torch.eye(taps, dtype=x.dtype, device=x.device).view(1, taps, *module.kernel_size)
    hidden = F.conv2d(
        planes.view(rows * rank, taps, height, width),
        shifts,
        None,
        module.stride,
        module.padding,
        module.dilation,
    )
    height, width = hidden.shape[2:]
    return torch.bmm(up.mT, hidden.view(rows, rank, -1)).view(rows, -1, height, width)
