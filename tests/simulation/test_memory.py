"""What does not fit the device is not tried at every step, nor given up for good."""

from __future__ import annotations

from itertools import pairwise

from sdxl_bento.engine.fake import Faults
from sdxl_bento.engine.request import Stage
from sdxl_bento.engine.scheduler import PROBE_S
from tests.simulation.world import Arrival, World, way

FITS = 4
CROWD = [Arrival(f"r{i}", 0.0, way(100, 2)) for i in range(150)]  # minutes of work


def run(back_at: float) -> tuple[World, list[tuple[float, int]]]:
    """A world with little memory until `back_at`; when steps ran, and of how many rows."""
    world = World(
        faults=Faults(fits=lambda key, rows, now: rows <= FITS or now >= back_at), know_costs=True
    )
    steps: list[tuple[float, int]] = []
    world.engine._on_unit = lambda done: (
        steps.append((world.clock.now, done.unit.rows))
        if done.unit.key.stage is Stage.BASE
        else None
    )
    world.run(CROWD)
    world.check()
    return world, steps


def test_rows_grow_back_when_memory_is_there_again() -> None:
    world, steps = run(back_at=30.0)
    assert max(rows for at, rows in steps if at < 30) == FITS
    assert max(rows for at, rows in steps if at > 30) == world.limits.max_rows


def test_a_limit_that_stays_is_tried_ever_more_rarely() -> None:
    world, steps = run(back_at=float("inf"))
    assert max(rows for _, rows in steps) == FITS
    [tried] = [
        found for key, found in world.executor.refused_rows.items() if key.stage is Stage.BASE
    ]
    waits = [after - before for (before, _), (after, _) in pairwise(tried)]
    probes = [wait for wait in waits if wait > 1]
    assert probes == sorted(probes)
    assert min(probes) >= PROBE_S
    assert max(probes) >= 2 * PROBE_S
