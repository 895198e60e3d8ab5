"""How long a unit of work takes, by (model, stage, size, rows): measured, never assumed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from sdxl_bento.engine.request import BatchKey, Cost, Request, Stage

SMOOTHING = 0.2  # weight of the newest observation
HICCUP = 4.0  # an observation counts as at most this many times the previous estimate
KEPT_KEYS = 1024  # sizes can be asked for without end; the one not seen for the longest goes
DRIFT = 0.05  # relative change of a cell from which on its estimates are computed anew


class CostTable:
    """Unit times in seconds. Unknown cells are read off the nearest known ones.

    Before anything is known an estimate is 0: the engine then admits rather than refuses.
    Estimates hold for an epoch, so that sums of them can be kept; a new one begins when a
    cell has drifted from what the epoch took it for.
    """

    def __init__(self) -> None:
        self.epoch = 0
        # The last observed come last.
        self._cells: dict[BatchKey, dict[int, float]] = {}
        self._estimates: dict[BatchKey, dict[int, float]] = {}  # of this epoch

    def observe(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Correct the table by one measured unit."""
        cells = self._cells_of(key)
        old = cells.get(rows)
        if not old:
            cells[rows] = seconds
            self._new_epoch(key)
            return
        cells[rows] = new = old + SMOOTHING * (min(seconds, HICCUP * old) - old)
        used = self._estimates.get(key, {}).get(rows, new)
        if abs(new - used) > DRIFT * used:
            self._new_epoch(key)

    def unit(self, key: BatchKey, rows: int) -> float:
        """Seconds of one unit of `rows` rows."""
        known = self._estimates.get(key)
        if known is None:
            known = self._estimates[key] = {}
        seconds = known.get(rows)
        if seconds is None:
            seconds = known[rows] = self._estimate(key, rows)
        return seconds

    def remaining(self, request: Request) -> float:
        """Seconds of work that the request has left if it runs without company."""
        if request.launched_all:
            return 0.0
        seconds, later = self.costs(request)[request.phase]
        return seconds * (request.phases[request.phase].steps - request.step) + later

    def costs(self, request: Request) -> tuple[Cost, ...]:
        """What each phase of the request costs, in this epoch."""
        if request.costs is None or request.costs[0] != self.epoch:
            costs: list[Cost] = []
            later = 0.0
            for key, phase in zip(request.keys[::-1], request.phases[::-1], strict=True):
                seconds = self.unit(key, phase.rows)
                costs.append(Cost(seconds, later))
                later += phase.steps * seconds
            request.costs = (self.epoch, tuple(costs[::-1]))
        return request.costs[1]

    def dump(self) -> list[dict[str, object]]:
        """The table as plain data, for a profile kept beside the model."""
        return [
            {
                "model": key.model,
                "stage": str(key.stage),
                "height": key.height,
                "width": key.width,
                "rows": rows,
                "seconds": seconds,
            }
            for key, cells in self._cells.items()
            for rows, seconds in sorted(cells.items())
        ]

    def load(self, profile: Iterable[Mapping[str, object]]) -> None:
        """Start from a profile that `dump` wrote."""
        for cell in profile:
            key = BatchKey(
                str(cell["model"]),
                Stage(str(cell["stage"])),
                int(str(cell["height"])),
                int(str(cell["width"])),
            )
            cells = self._cells_of(key)
            cells[int(str(cell["rows"]))] = float(str(cell["seconds"]))
            self._new_epoch(key)

    def _cells_of(self, key: BatchKey) -> dict[int, float]:
        cells = self._cells[key] = self._cells.pop(key, {})
        if len(self._cells) > KEPT_KEYS:
            oldest = next(iter(self._cells))
            del self._cells[oldest]
            self._estimates.pop(oldest, None)
        return cells

    def _new_epoch(self, key: BatchKey) -> None:
        """The cells of `key` have changed, so drop what was computed from them."""
        self.epoch += 1
        self._estimates.pop(key, None)
        for other in self._estimates.keys() - self._cells.keys():
            del self._estimates[other]  # it may have been read off this one

    def _estimate(self, key: BatchKey, rows: int) -> float:
        cells = self._cells.get(key)
        return _between(cells, rows) if cells else self._from_other_size(key, rows)

    def _from_other_size(self, key: BatchKey, rows: int) -> float:
        """Scale by pixels from the nearest size of the same model and stage."""
        pixels = key.height * key.width
        known = [k for k in self._cells if k.model == key.model and k.stage is key.stage]
        if not known or not pixels:
            return 0.0
        nearest = min(known, key=lambda k: abs(k.height * k.width - pixels))
        return self.unit(nearest, rows) * pixels / (nearest.height * nearest.width)


def _between(cells: Mapping[int, float], rows: int) -> float:
    """Linear between known row counts, proportional above them, the smallest below them."""
    counts = sorted(cells)
    at = bisect_left(counts, rows)
    if at == 0:
        return cells[counts[0]]
    low = counts[at - 1]
    if at == len(counts):
        return cells[low] * rows / low
    high = counts[at]
    share = (rows - low) / (high - low)
    return cells[low] + share * (cells[high] - cells[low])
