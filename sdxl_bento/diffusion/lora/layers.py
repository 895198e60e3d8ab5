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
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.errors import RequestFailed

Mix = tuple[tuple[str, float], ...]
Factors = tuple[torch.Tensor, torch.Tensor]
Arrange = Callable[[torch.Tensor, torch.Tensor], Factors]


class MixedLayer:
    """What one mix adds to one layer: its adapters' factors laid side by side, scales in `up`.

    They are computed at the first use and kept for every batch that has the mix.
    """

    def __init__(self, parts: Sequence[tuple[LowRank, float]]) -> None:
        self._parts = parts
        self.rank = sum(part.rank for part, _ in parts)
        self._factors: Factors | None = None
        self._factors_rank = 0

    def factors(self, like: torch.Tensor, rank: int, arrange: Arrange) -> Factors:
        """Arranged down and up as `like`; `rank` at least the own one, the rest is zeros."""
        if self._factors is None or self._factors_rank != rank:
            self._factors = self._make(like, rank, arrange)
            self._factors_rank = rank
        return self._factors

    def _make(self, like: torch.Tensor, rank: int, arrange: Arrange) -> Factors:
        down = torch.cat([part.down.to(like) for part, _ in self._parts])
        ups = [part.up.to(like.device).float() * scale for part, scale in self._parts]
        up = torch.cat(ups, 1).to(like)
        down = F.pad(down, (0, 0) * (down.dim() - 1) + (0, rank - self.rank))
        return arrange(down, F.pad(up, (0, rank - self.rank)))


class Mixed:
    """What one mix adds to one target, layer by layer."""

    def __init__(self, adapters: Mapping[str, Mapping[str, LowRank]], mix: Mix) -> None:
        """`adapters`: name → layer → factors, of at least those that the mix names."""
        names = {layer for name, _ in mix for layer in adapters[name]}
        self.layers = {
            layer: MixedLayer(
                [(adapters[name][layer], scale) for name, scale in mix if layer in adapters[name]]
            )
            for layer in sorted(names)
        }
        # What it will hold once all layers have been computed, in the adapters' own dtype.
        self.nbytes = sum(part.nbytes for name, _ in mix for part in adapters[name].values())


@dataclass(frozen=True)
class Run:
    """Neighbouring rows, `start` to `stop`, with the same mix."""

    start: int
    stop: int
    mixed: MixedLayer


class LayerRows:
    """One layer's forward with what each row's adapters add.

    Gathers its factors at the first call and keeps them. Only then are the device and dtype known
    that the layer computes in: under offload, neither is what its weight says.
    """

    def __init__(self, layer: nn.Module, runs: Sequence[Run], rows: int) -> None:
        self.layer, self.runs, self.rows = layer, runs, rows
        self.forward: Callable[[torch.Tensor], torch.Tensor] = layer.forward  # the layer's own
        self.start, self.stop = runs[0].start, runs[-1].stop
        edges = (edge - self.start for run in runs for edge in (run.start, run.stop))
        # Rows are taken in blocks of one mix, the larger the better.
        self.block = math.gcd(*edges)
        self.groups = (self.stop - self.start) // self.block
        self.factors: Factors | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # Called a hundred times in a step. A small layer takes less time than a few lines here.
        output = self.forward(x)
        y, rows = output, output.shape[0]
        if rows != self.rows:
            raise RequestFailed(f"{rows} rows in a batch whose adapters are for {self.rows}")
        if self.stop - self.start != rows:
            x, y = x[self.start : self.stop], y[self.start : self.stop]
        x = x.to(y)  # offload may hand a layer its input on another device
        if self.factors is None:
            self.factors = self.gather(x)
        self.add(x, y, *self.factors)
        return output

    @staticmethod
    def arrange(down: torch.Tensor, up: torch.Tensor) -> Factors:
        """From down [rank, in, …] and up [out, rank] to what the layer's products take."""
        return down, up

    def gather(self, x: torch.Tensor) -> Factors:
        """One entry for each group: zeros, which cannot overflow, for one that has no adapter."""
        rank = max(run.mixed.rank for run in self.runs)
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        for run in self.runs:
            down, up = run.mixed.factors(x, rank, self.arrange)
            bare = (run.start - self.start) // self.block - len(downs)
            if bare:
                downs += [torch.zeros_like(down)] * bare
                ups += [torch.zeros_like(up)] * bare
            count = (run.stop - run.start) // self.block
            downs += [down] * count
            ups += [up] * count
        return torch.stack(downs), torch.stack(ups)

    def add(self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        """Add the product of the three to y, in place."""
        raise NotImplementedError


class LinearRows(LayerRows):
    """x [rows, …, in], y [rows, …, out]."""

    @staticmethod
    def arrange(down: torch.Tensor, up: torch.Tensor) -> Factors:
        # As they multiply from the right: [in, rank], [rank, out].
        return down.mT.contiguous(), up.mT.contiguous()

    def add(self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        hidden = torch.bmm(x.reshape(self.groups, -1, x.shape[-1]), down)
        _add_product(y, hidden, up)


class ConvRows(LayerRows):
    """x [rows, in, h, w], y [rows, out, h', w']: a grouped convolution, then a product by pixel."""

    layer: nn.Conv2d

    def __init__(self, layer: nn.Module, runs: Sequence[Run], rows: int) -> None:
        super().__init__(layer, runs, rows)
        if len(runs) > 1:
            # Groups lie along the channels, so a block of rows would have to be moved there.
            self.block, self.groups = 1, self.stop - self.start

    def add(self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        if x.device.type == "cpu" and x.dtype is not torch.float32:
            # A grouped convolution's rounding depends on the groups beside it: in bfloat16 by up to
            # five levels of a picture.
            self._add_by_run(x, y, down, up)
            return
        hidden = F.conv2d(
            x.reshape(-1, self.groups * x.shape[1], *x.shape[2:]),
            down.flatten(0, 1),
            None,
            self.layer.stride,
            self.layer.padding,
            self.layer.dilation,
            self.groups,
        )
        rows = y.shape[0]
        _add_product(y, up.expand(rows, -1, -1), hidden.view(rows, down.shape[1], -1))

    def _add_by_run(
        self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor
    ) -> None:
        layer = self.layer
        for run in self.runs:
            rows = slice(run.start - self.start, run.stop - self.start)
            group = rows.start // self.block
            hidden = F.conv2d(
                x[rows], down[group], None, layer.stride, layer.padding, layer.dilation
            )
            factors = up[group].expand(run.stop - run.start, -1, -1)
            _add_product(y[rows], factors, hidden.flatten(2))


def _add_product(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """y += left @ right, one matrix product for each of `left`."""
    if y.is_contiguous():
        y.view(left.shape[0], left.shape[1], right.shape[2]).baddbmm_(left, right)
    else:  # channels_last
        y += torch.bmm(left, right).view(y.shape)


def rows_type_of(module: nn.Module) -> type[LayerRows]:
    return ConvRows if isinstance(module, nn.Conv2d) else LinearRows


class Composition:
    """The mixes of one batch's rows, layer by layer; good for as long as the rows stay."""

    def __init__(
        self,
        modules: Modules,
        mixes: Mapping[Mix, Mixed],
        rows: Sequence[Mix],
        rows_type: Callable[[nn.Module], type[LayerRows]] = rows_type_of,
    ) -> None:
        """
        Args:
            modules: of the target.
            mixes: what each mix in `rows` adds; () needs no entry.
            rows: one mix for each row.
            rows_type: how a layer's rows are computed; another than ours for comparison only.
        """
        runs: dict[str, list[Run]] = {}
        self.nbytes = 0  # at most, and but for zeros: a stack may have one entry for several rows
        start = 0
        for mix, same in groupby(rows):
            stop = start + len(list(same))
            if mix:
                self.nbytes += mixes[mix].nbytes * (stop - start)
                for layer, mixed in mixes[mix].layers.items():
                    runs.setdefault(layer, []).append(Run(start, stop, mixed))
            start = stop
        self._layers = [
            rows_type(modules[layer])(modules[layer], layer_runs, len(rows))
            for layer, layer_runs in runs.items()
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """While inside, the layers run with the adapters.

        Their `forward` is set on the instance, over what may be there by offload. That costs a
        tenth of registering a forward hook and of calling it.
        """
        own = [vars(rows.layer).get("forward") for rows in self._layers]
        for rows in self._layers:
            rows.forward = rows.layer.forward
            vars(rows.layer)["forward"] = rows
        try:
            yield
        finally:
            for rows, forward in zip(self._layers, own, strict=True):
                if forward is None:
                    del vars(rows.layer)["forward"]
                else:
                    vars(rows.layer)["forward"] = forward
