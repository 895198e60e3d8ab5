"""A closed loop of clients: each sends its next call when its last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.cli.failures import Failure
from sdxl_bento.errors import SDXLError


@dataclass(slots=True)
class Level:
    """The measurements so far with one number of clients. All times are in seconds.

    A latency runs from sending a call to having its picture. `queued` is the part of it that the
    server reports as waiting. `elapsed` is the time of the whole loop. `cut_short` is true if the
    loop was ended by its time limit.
    """

    clients: int
    asked: int = 0
    latencies: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0
    cut_short: bool = False

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return len(self.latencies) / self.elapsed if self.elapsed else 0.0

    def figures(self) -> dict[str, Any]:
        """The measurements as JSON."""
        return {
            "clients": self.clients,
            "pictures": len(self.latencies),
            "seconds": round(self.elapsed, 3),
            "pictures_per_s": round(self.throughput, 4),
            "latency_s": percentiles(self.latencies),
            "queue_s": percentiles(self.queued),
            "errors": dict(self.errors),
            "cut_short": self.cut_short,
        }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p90 and p99, interpolated linearly; None if there are no values."""
    import numpy as np

    if not values:
        return None
    points = np.percentile(values, (50, 90, 99))
    return {f"p{q}": round(float(value), 4) for q, value in zip((50, 90, 99), points, strict=True)}


async def closed_loop(
    draw: Callable[[int], Awaitable[float]],
    level: Level,
    requests: int,
    limit_s: float,
    on_answer: Callable[[], None],
) -> None:
    """Let `level.clients` clients draw `requests` pictures, and fill `level` meanwhile.

    Args:
        draw: draws the picture with that number, and returns how long it was queued.
        level: has the measurements so far at any time, also after a cancellation.
        requests: the number of pictures of all clients together.
        limit_s: the time limit. Calls that then still run are cancelled and do not count.
        on_answer: called after each picture or error.
    """
    numbers = iter(range(requests))
    begin = time.perf_counter()

    async def client() -> None:
        for number in numbers:
            level.asked += 1
            asked = time.perf_counter()
            try:
                queued = await draw(number)
            except (Failure, SDXLError) as error:
                level.errors[_kind(error)] += 1
            else:
                level.latencies.append(time.perf_counter() - asked)
                level.queued.append(queued)
            on_answer()

    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*(client() for _ in range(level.clients)))
    except TimeoutError:
        level.cut_short = True
    finally:
        level.elapsed = time.perf_counter() - begin


def _kind(error: Exception) -> str:
    failure = error if isinstance(error, Failure) else Failure.of_error(error)
    return str(failure.body["type"])
