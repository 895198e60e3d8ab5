"""The arithmetic of the benchmarks: percentiles, arrivals, goodput."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request of an open loop.

    `seconds` runs from the moment it was due to be sent, not from when it was sent: a client that
    falls behind must not hide the queue. None: it was refused or failed. `status` is HTTP's.
    """

    kind: str
    deadline_s: float
    seconds: float | None
    status: int

    @property
    def on_time(self) -> bool:
        return self.seconds is not None and self.seconds <= self.deadline_s


def percentile(values: Sequence[float], share: float) -> float:
    """The value under which `share` (0 to 1) of the values lie, linear between neighbours.

    Raises:
        ValueError: no values, or a share outside of 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"the {share:g} quantile of {len(values)} values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def poisson_arrivals(rng: random.Random, count: int, rate: float) -> list[float]:
    """Times in seconds of `count` arrivals of a Poisson process with `rate` a second, from 0."""
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def attainment(outcomes: Sequence[Outcome]) -> float:
    """The share of all requests that was answered on time; who was refused was not."""
    return sum(outcome.on_time for outcome in outcomes) / len(outcomes)


def goodput(outcomes: Sequence[Outcome], window_s: float) -> float:
    """Requests answered on time, for each second in which requests arrived."""
    return sum(outcome.on_time for outcome in outcomes) / window_s
