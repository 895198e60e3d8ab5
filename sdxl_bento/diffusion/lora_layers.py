"""The arithmetic: to each row of a batch, what its own adapters add.

A layer computes `y = W x`. Row i of the batch gets on top, for each of its adapters,
`scale * (alpha / r) * up (down x_i)`. The adapters of one mix are laid side by side, so that a
mix is one pair of factors however many adapters it has. Why it is done by batched products over
gathered factors: docs/adr/0008-lora-per-row.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_bento.diffusion.lora_files import LowRank, Modules
from sdxl_bento.errors import RequestFailed

Mix = tuple[tuple[str, float], ...]
Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Run:
    """Neighbouring rows, `start` to `stop`, with the same adapters."""

    start: int
    stop: int
    parts: tuple[tuple[LowRank, float], ...]

    @cached_property
    def rank(self) -> int:
        return sum(part.rank for part, _ in self.parts)

    def factors(self, like: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the whole mix, without scales, as `like`: down [rank, in, …] and up [out, rank]."""
        down = _joined([part.down.to(like) for part, _ in self.parts], 0)
        up = _joined([part.up.to(like) for part, _ in self.parts], 1)
        missing = rank - self.rank
        if missing:
            down = F.pad(down, (0, 0) * (down.dim() - 1) + (0, missing))
            up = F.pad(up, (0, missing))
        return down, up

    def scales(self, rank: int) -> tuple[float, ...]:
        """One for each column of `up`."""
        own: tuple[float, ...] = ()
        for part, scale in self.parts:
            own += (scale,) * part.rank
        return own + (0.0,) * (rank - len(own))


class LayerRows:
    """A forward hook of one layer. Gathers its factors at the first call and keeps them.

    Only then are the device and dtype known that the layer computes in: under offload, neither is
    what its weight says.
    """

    def __init__(self, runs: Sequence[Run], rows: int) -> None:
        self.runs, self.rows = runs, rows
        self.start, self.stop = runs[0].start, runs[-1].stop
        edges = (edge - self.start for run in runs for edge in (run.start, run.stop))
        # Rows are taken in blocks of one mix, the larger the better.
        self.block = math.gcd(*edges)
        self.groups = (self.stop - self.start) // self.block
        self.factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, module: nn.Module, inputs: Inputs, output: torch.Tensor) -> None:
        if len(output) != self.rows:
            raise RequestFailed(f"{len(output)} rows in a batch whose adapters are for {self.rows}")
        # Offload may hand a layer its input on another device.
        x = inputs[0][self.start : self.stop].to(output)
        if self.factors is None:
            self.factors = self.gather(x)
        self.add(module, x, output[self.start : self.stop])

    def gather(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """down [groups, rank, in, …] and up [groups, out, rank], with the scales in `up`.

        A batch that has changed pays for this once in every layer, so the kernels are few: one
        stack for each factor, one product. Zeros fill up smaller ranks, and both factors of a
        group that has no adapter, so that nothing of it can overflow.
        """
        rank = max(run.rank for run in self.runs)
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        scales: list[tuple[float, ...]] = []
        for run in self.runs:
            down, up = run.factors(x, rank)
            bare = (run.start - self.start) // self.block - len(downs)
            count = (run.stop - run.start) // self.block
            if bare:
                downs += [torch.zeros_like(down)] * bare
                ups += [torch.zeros_like(up)] * bare
                scales += [(0.0,) * rank] * bare
            downs += [down] * count
            ups += [up] * count
            scales += [run.scales(rank)] * count
        return self.stack(downs, ups, _table(tuple(scales), x.device))

    def stack(
        self, downs: list[torch.Tensor], ups: list[torch.Tensor], scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack(downs), _scaled(torch.stack(ups), scales[:, None, :])

    def add(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return sum(factor.nbytes for factor in self.factors or ())


class LinearRows(LayerRows):
    """x [rows, …, in], y [rows, …, out]."""

    def stack(
        self, downs: list[torch.Tensor], ups: list[torch.Tensor], scales: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # As they are multiplied from the right: down [groups, in, rank], up [groups, rank, out].
        down = torch.stack([down.mT for down in downs])
        return down, _scaled(torch.stack([up.mT for up in ups]), scales[:, :, None])

    def add(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        assert self.factors
        down, up = self.factors
        hidden = torch.bmm(x.reshape(self.groups, -1, x.shape[-1]), down)
        _add_product(y, hidden, up)


class ConvRows(LayerRows):
    """x [rows, in, h, w], y [rows, out, h', w']: a grouped convolution, then a product by pixel."""

    def __init__(self, runs: Sequence[Run], rows: int) -> None:
        super().__init__(runs, rows)
        if len(runs) > 1:
            # Groups lie along the channels, so a block of rows would have to be moved there.
            self.block, self.groups = 1, self.stop - self.start

    def add(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        assert self.factors
        assert isinstance(module, nn.Conv2d)
        down, up = self.factors
        hidden = F.conv2d(
            x.reshape(-1, self.groups * x.shape[1], *x.shape[2:]),
            down.flatten(0, 1),
            None,
            module.stride,
            module.padding,
            module.dilation,
            self.groups,
        )
        hidden = hidden.view(len(y), down.shape[1], -1)
        _add_product(y, up.expand(len(y), -1, -1), hidden)


def _joined(factors: list[torch.Tensor], dim: int) -> torch.Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(factors, dim)


@lru_cache(maxsize=64)
def _table(scales: tuple[tuple[float, ...], ...], device: torch.device) -> torch.Tensor:
    """On the device once for all layers of a batch."""
    return torch.tensor(scales, device=device)


def _scaled(up: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """In place, multiplied in float32 whatever the type of `up`; it is a copy already."""
    return up.mul_(scales)


def _add_product(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """y += left @ right, one matrix product for each of `left`."""
    if y.is_contiguous():
        y.view(len(left), left.shape[1], right.shape[2]).baddbmm_(left, right)
    else:  # channels_last
        y += torch.bmm(left, right).view(y.shape)


def hook_type_of(module: nn.Module) -> type[LayerRows]:
    return ConvRows if isinstance(module, nn.Conv2d) else LinearRows


class Composition:
    """The adapters of one batch's rows, layer by layer; good for as long as the rows stay."""

    def __init__(
        self,
        modules: Modules,
        adapters: Mapping[str, Mapping[str, LowRank]],
        rows: Sequence[Mix],
        hook_type: Callable[[nn.Module], type[LayerRows]] = hook_type_of,
    ) -> None:
        """
        Args:
            modules: of the target.
            adapters: name → layer → factors, of those adapters that `rows` name.
            rows: one mix for each row.
            hook_type: how a layer's rows are computed; another than ours for comparison only.
        """
        self._layers: list[tuple[nn.Module, LayerRows]] = []
        for layer in sorted({layer for layers in adapters.values() for layer in layers}):
            runs = _runs(rows, adapters, layer)
            if runs:
                module = modules[layer]
                self._layers.append((module, hook_type(module)(runs, len(rows))))

    @contextmanager
    def active(self) -> Iterator[None]:
        handles = [module.register_forward_hook(hook) for module, hook in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def nbytes(self) -> int:
        """Bytes of the factors gathered so far."""
        return sum(hook.nbytes for _, hook in self._layers)


def _runs(
    rows: Sequence[Mix], adapters: Mapping[str, Mapping[str, LowRank]], layer: str
) -> list[Run]:
    """The runs of rows that have something to add to this layer."""
    runs, start = [], 0
    for mix, same in groupby(rows):
        stop = start + len(list(same))
        parts = [(adapters[name].get(layer), scale) for name, scale in mix]
        present = tuple((part, scale) for part, scale in parts if part is not None)
        if present:
            runs.append(Run(start, stop, present))
        start = stop
    return runs
