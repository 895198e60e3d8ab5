"""The benchmarks' own arithmetic, and that what they ask for is what they say."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable

import numpy as np
import pytest

from benchmarks.load import Answer, Arrival, Ask, closed_loop, open_loop, prompt
from benchmarks.report import aim
from benchmarks.stats import Outcome, attainment, goodput, percentile, poisson_arrivals


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(share: float, count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    assert percentile(list(values), share) == pytest.approx(float(np.quantile(values, share)))


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_there_is_no_percentile_of_nothing(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        percentile(values, share)


def test_arrivals_are_poisson() -> None:
    times = poisson_arrivals(random.Random(0), 20_000, rate=4.0)
    gaps = np.diff([0.0, *times])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    # Only the exponential distribution has its mean for a spread and no memory.
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_the_same_seed_gives_every_contender_the_same_arrivals() -> None:
    first, second = (poisson_arrivals(random.Random(2), 50, 1.0) for _ in range(2))
    assert first == second


def test_refused_and_late_answers_count_against_the_goodput() -> None:
    outcomes = [
        Outcome("short", deadline_s=1.0, seconds=0.5, status=200),
        Outcome("short", deadline_s=1.0, seconds=1.0, status=200),
        Outcome("short", deadline_s=1.0, seconds=1.5, status=200),
        Outcome("long", deadline_s=9.0, seconds=None, status=503),
    ]
    assert attainment(outcomes) == 0.5
    assert goodput(outcomes, window_s=4.0) == 0.5


@pytest.mark.parametrize(
    ("value", "at_least", "reached"),
    [(1.0, True, True), (0.9, True, False), (0.9, False, True), (None, True, None)],
)
def test_aims(value: float | None, at_least: bool, reached: bool | None) -> None:
    assert aim("x", value, 1.0, at_least=at_least)["reached"] is reached


def test_prompts_and_seeds_differ() -> None:
    assert len({prompt(number) for number in range(200)}) == 200
    assert Ask(7, 4, slo_s=1.5, lora="a").body() == {
        "prompt": prompt(7),
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "seed": 7,
        "slo_ms": 1500.0,
        "loras": [{"name": "a", "scale": 1.0}],
    }


class Stub:
    """A contender that takes `seconds` for each picture, any number at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[Ask] = []
        self.at_work = self.most_at_work = 0

    async def draw(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(self.seconds)
        self.at_work -= 1
        refused = ask.slo_s is not None and ask.slo_s < self.seconds
        return Answer(self.seconds, 503 if refused else 200)

    async def draw_all(self, asks: Iterable[Ask]) -> float:
        for ask in asks:
            await self.draw(ask)
        return self.seconds


async def test_a_closed_loop_keeps_so_many_clients_busy() -> None:
    stub = Stub(0.01)
    rate = await closed_loop(stub, 4, [Ask(i, 1) for i in range(12)])  # type: ignore[arg-type]
    assert stub.most_at_work == 4
    assert [ask.number for ask in stub.asked] == list(range(12))
    assert 0 < rate <= 400


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    stub = Stub(0.2)
    trace = [Arrival(0.02 * i, "x", Ask(i, 1), deadline_s=0.1 + i) for i in range(3)]
    begin = time.perf_counter()
    outcomes = await open_loop(stub, trace, tell_deadline=True)  # type: ignore[arg-type]
    assert stub.most_at_work == 3
    assert time.perf_counter() - begin >= 0.24
    assert [ask.slo_s for ask in stub.asked] == [0.1, 1.1, 2.1]
    assert [(o.status, o.seconds is None) for o in outcomes] == [
        (503, True),
        (200, False),
        (200, False),
    ]
    assert all(o.seconds >= 0.2 for o in outcomes if o.seconds is not None)


async def test_an_open_loop_tells_no_deadline_unless_asked_to() -> None:
    stub = Stub(0.0)
    trace = [Arrival(0.0, "x", Ask(1, 1), deadline_s=5.0)]
    await open_loop(stub, trace, tell_deadline=False)  # type: ignore[arg-type]
    assert stub.asked[0].slo_s is None
