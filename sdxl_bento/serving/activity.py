"""How busy this process is, for `/stats` and the metrics."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sdxl_bento.engine.async_engine import AsyncEngine, EngineState
from sdxl_bento.serving.results import UnitDone

if TYPE_CHECKING:
    from sdxl_bento.engine.executor import Completion
    from sdxl_bento.serving.registry import ModelRegistry
    from sdxl_bento.serving.verification import Verification

_MOST_UNITS = 65_536


class Activity:
    """What the engine is doing, and which units of work it has completed."""

    def __init__(
        self, engine: AsyncEngine, models: ModelRegistry, verification: Verification
    ) -> None:
        self._engine = engine
        self._models = models
        self._verification = verification
        # The engine's thread appends without a lock. The length is bounded because in a process
        # without metrics nobody takes the units out.
        self._units: deque[UnitDone] = deque(maxlen=_MOST_UNITS)

    def stats(self) -> dict[str, object]:
        """The numbers of pictures that wait and run, and the totals of the caches so far."""
        stats: dict[str, object] = {"state": str(self._engine.state), "waiting": 0, "running": 0}
        stats["damaged_files"] = len(self._verification.damaged)
        if self._engine.state in (EngineState.READY, EngineState.DRAINING):
            stats.update(self._engine.counts())
        served = [model.served for model in self._models.loaded()]
        if served:
            pools = [each.adapters for each in served]
            cache = served[0].conditioner.cache  # all models share it
            stats["prompt_cache"] = {"hits": cache.hits, "misses": cache.misses}
            stats["loras"] = {
                "hits": sum(pool.hits for pool in pools),
                "loads": sum(pool.loads for pool in pools),
                "failures": sum(pool.failures for pool in pools),
            }
        return stats

    def units(self) -> list[UnitDone]:
        """The units of work that were completed since the last call, the oldest first."""
        return [self._units.popleft() for _ in range(len(self._units))]

    def note(self, completion: Completion) -> None:
        """Remember a completed unit of work, without the requests that it was run for."""
        if self._models:  # no models are published during warm-up, which does not count
            stage = completion.unit.key.stage
            self._units.append(UnitDone(stage, completion.unit.rows, completion.seconds))
