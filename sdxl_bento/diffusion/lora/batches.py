"""What recent batches computed from loaded adapters, kept for the next ones, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.layers import Composition, Mix, Mixed

# Batches of different sizes and targets take turns, but soon one with new rows follows.
KEPT_COMPOSITIONS = 4
KEPT_MIXES = 64


class Batches:
    """Belongs to the engine's thread. May hold as many bytes again as the adapters may."""

    def __init__(self, targets: Mapping[str, Modules], budget_bytes: int) -> None:
        self._targets, self._budget = targets, budget_bytes
        # The last used come last. No ready-made cache: both share one budget, and what the batch
        # to come needs is kept even where it alone exceeds that.
        self._mixes: OrderedDict[tuple[str, Mix], Mixed] = OrderedDict()
        self._compositions: OrderedDict[tuple[str, tuple[Mix, ...]], Composition] = OrderedDict()

    def composition(
        self, target: str, rows: Sequence[Mix], adapters: Mapping[str, Mapping[str, LowRank]]
    ) -> Composition:
        """For these rows; `adapters`: name → layer of the target → factors, of all they name."""
        key = target, tuple(rows)
        composition = self._compositions.get(key)
        if composition is None:
            self._trim()
            mixes = {mix: self._mixed(target, mix, adapters) for mix in dict.fromkeys(rows) if mix}
            composition = Composition(self._targets[target], mixes, rows)
            self._compositions[key] = composition
        self._compositions.move_to_end(key)
        return composition

    def forget(self, name: str) -> None:
        """Drop everything that was computed from an adapter."""
        for target, rows in list(self._compositions):
            if any(_names(mix, name) for mix in rows):
                del self._compositions[target, rows]
        for target, mix in list(self._mixes):
            if _names(mix, name):
                del self._mixes[target, mix]

    def _mixed(self, target: str, mix: Mix, adapters: Mapping[str, Mapping[str, LowRank]]) -> Mixed:
        key = target, mix
        if key not in self._mixes:
            self._mixes[key] = Mixed(adapters, mix)
        self._mixes.move_to_end(key)
        return self._mixes[key]

    def _trim(self) -> None:
        held = sum(each.nbytes for each in self._compositions.values())
        held += sum(each.nbytes for each in self._mixes.values())
        while self._compositions and (
            held > self._budget or len(self._compositions) >= KEPT_COMPOSITIONS
        ):
            held -= self._compositions.popitem(last=False)[1].nbytes
        while self._mixes and (held > self._budget or len(self._mixes) >= KEPT_MIXES):
            held -= self._mixes.popitem(last=False)[1].nbytes


def _names(mix: Mix, name: str) -> bool:
    return any(name == used for used, _ in mix)
