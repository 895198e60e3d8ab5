"""The arithmetic: each row of a batch gets its own adapters' low-rank product added.

A layer computes `y = W x`. Row i of the batch gets `y_i += sum over its adapters of
scale * (alpha / r) * up (down x_i)`. The adapters of one mix are laid side by side, so that a mix
is one pair of factors whatever number of adapters it has.
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

from sdxl_bento.diffusion.lora_files import LowRank, Modules

Mix = tuple[tuple[str, float], ...]
Part = tuple[LowRank, float]
Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]


@dataclass(frozen=True)
class Run:
    """Neighbouring rows `start` to `stop` with the same adapters in this layer."""

    start: int
    stop: int
    parts: tuple[Part, ...]

    @property
    def rank(self) -> int:
        return sum(part.rank for part, _ in self.parts)

    def factors(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """down [r, in, …] and scaled up [out, r] of the whole mix, in the type of `like`."""
        down = torch.cat([part.down.to(like) for part, _ in self.parts])
        up = torch.cat([part.up.to(like.device).float() * scale for part, scale in self.parts], 1)
        return down, up.to(like.dtype)


class Composition:
    """One batch's rows and what they add to each layer; kept as long as the rows stay the same.

    The factors are gathered at a layer's first call, when the device and type that it computes in
    are known; later steps of the same rows find them ready.
    """

    def __init__(
        self, modules: Modules, adapters: Mapping[str, Mapping[str, LowRank]], rows: Sequence[Mix]
    ) -> None:
        """`adapters`: name → layer → factors, for this target."""
        runs = _runs(rows)
        block = math.gcd(*(stop - start for start, stop, _ in runs))
        self._hooks: list[tuple[nn.Module, Hook]] = []
        for layer in sorted({layer for layers in adapters.values() for layer in layers}):
            touched = []
            for start, stop, mix in runs:
                parts = tuple(
                    (adapters[name][layer], scale) for name, scale in mix if layer in adapters[name]
                )
                if parts:
                    touched.append(Run(start, stop, parts))
            module = modules[layer]
            hook = _hook(module, touched, len(rows), block)
            self._hooks.append((module, hook))

    @contextmanager
    def active(self) -> Iterator[None]:
        handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _runs(rows: Sequence[Mix]) -> list[tuple[int, int, Mix]]:
    runs, start = [], 0
    for mix, same in groupby(rows):
        stop = start + len(list(same))
        runs.append((start, stop, mix))
        start = stop
    return runs


def _hook(module: nn.Module, runs: list[Run], rows: int, block: int) -> Hook:
    if isinstance(module, nn.Conv2d):
        return ConvRows(module, runs, rows)
    return LinearRows(runs, rows, block)


class LinearRows:
    """Adds to a linear layer: x [R, …, in], y [R, …, out]."""

    def __init__(self, runs: list[Run], rows: int, block: int) -> None:
        self._runs, self._rows, self._block = runs, rows, block
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        x = inputs[0].to(output.device)
        if self._factors is None:
            self._factors = self._gather(x)
        down, up = self._factors
        groups = self._rows // self._block
        hidden = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down)
        output.view(groups, -1, output.shape[-1]).baddbmm_(hidden, up)

    def _gather(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """down [groups, in, r], up [groups, r, out]; zeros fill a smaller rank and a bare row."""
        rank = max(run.rank for run in self._runs)
        first = self._runs[0].parts[0][0]
        groups = self._rows // self._block
        down = x.new_zeros(groups, first.down.shape[1], rank)
        up = x.new_zeros(groups, rank, first.up.shape[0])
        for run in self._runs:
            run_down, run_up = run.factors(x)
            where = slice(run.start // self._block, run.stop // self._block)
            down[where, :, : run.rank] = run_down.T
            up[where, : run.rank] = run_up.T
        return down, up


class ConvRows:
    """Adds to a convolution: x [R, in, h, w], y [R, out, h', w']."""

    def __init__(self, module: nn.Conv2d, runs: list[Run], rows: int) -> None:
        self._runs, self._rows = runs, rows
        self._stride, self._padding, self._dilation = (
            module.stride,
            module.padding,
            module.dilation,
        )
        self._factors: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        x = inputs[0].to(output.device)
        if not self._factors:
            self._factors = [run.factors(x) for run in self._runs]
        for run, (down, up) in zip(self._runs, self._factors, strict=True):
            hidden = F.conv2d(
                x[run.start : run.stop], down, None, self._stride, self._padding, self._dilation
            )
            output[run.start : run.stop] += F.conv2d(hidden, up[:, :, None, None])
