"""How long a unit of work takes, by (model, stage, size, rows): measured, never assumed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from sdxl_bento.engine.request import BatchKey, Request, Stage

SMOOTHING = 0.2  # weight of the newest observation
DRIFT = 0.05  # relative change that makes cached estimates stale


class CostTable:
    """Unit times in seconds. Unknown cells are read off the nearest known ones.

    Before anything is known an estimate is 0: the engine then admits rather than refuses.
    """

    def __init__(self) -> None:
        self._cells: dict[BatchKey, dict[int, float]] = {}
        self.epoch = 0  # grows when estimates change enough to matter

    def observe(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Correct the table by one measured unit."""
        cells = self._cells.setdefault(key, {})
        old = cells.get(rows)
        if old is None:
            cells[rows] = seconds
            self.epoch += 1
            return
        # One hiccup of the machine should not look like a new normal.
        seen = min(seconds, 4 * old)
        cells[rows] = new = old + SMOOTHING * (seen - old)
        if abs(new - old) > DRIFT * old:
            self.epoch += 1

    def unit(self, key: BatchKey, rows: int) -> float:
        """Seconds of one unit of `rows` rows."""
        cells = self._cells.get(key)
        if cells:
            return cells[rows] if rows in cells else _between(cells, rows)
        return self._from_other_size(key, rows)

    def per_row(self, key: BatchKey, rows: int, batch: int) -> float:
        """Seconds that `rows` rows add to a batch of about `batch` rows."""
        batch = max(batch, rows)
        return self.unit(key, batch) * rows / batch

    def remaining(self, request: Request) -> float:
        """Seconds of work that the request has left if it runs without company."""
        if request.launched_all:
            return 0.0
        if request.costs is None or request.costs[0] != self.epoch:
            now, *later = request.phases[request.phase :]
            tail = sum(p.steps * self.unit(request.key_of(p), p.rows) for p in later)
            request.costs = (self.epoch, self.unit(request.key_of(now), now.rows), tail)
        _, unit, tail = request.costs
        return unit * (request.phases[request.phase].steps - request.step) + tail

    def demand(self, request: Request, batch: int) -> float:
        """Device seconds that the request still takes up in batches of about `batch` rows."""
        total = 0.0
        for index, phase in enumerate(request.phases[request.phase :]):
            left = phase.steps - (request.step if index == 0 else 0)
            total += left * self.per_row(request.key_of(phase), phase.rows, batch)
        return total

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
            cells = self._cells.setdefault(key, {})
            cells[int(str(cell["rows"]))] = float(str(cell["seconds"]))
        self.epoch += 1

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
