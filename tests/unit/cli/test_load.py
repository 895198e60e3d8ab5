"""The closed loop of `bench`, and what it makes of what comes back."""

from __future__ import annotations

import asyncio

import pytest

from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.load import Level, closed_loop, percentiles
from sdxl_bento.errors import InvalidInput


def nothing() -> None:
    """Nobody looks at the bar."""


def test_percentiles() -> None:
    assert percentiles([]) is None
    assert percentiles([2.0]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert percentiles(list(range(101))) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}


async def test_so_many_at_once_and_each_once() -> None:
    running, most, asked = 0, 0, []

    async def draw(number: int) -> float:
        nonlocal running, most
        asked.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 0.25

    level = Level(3)
    await closed_loop(draw, level, 10, 60.0, nothing)
    assert (sorted(asked), most) == (list(range(10)), 3)
    figures = level.figures()
    assert (figures["pictures"], figures["cut_short"], figures["errors"]) == (10, False, {})
    assert figures["queue_s"] == {"p50": 0.25, "p90": 0.25, "p99": 0.25}
    assert figures["pictures_per_s"] > 0


async def test_errors_are_counted_by_kind() -> None:
    async def draw(number: int) -> float:
        if number % 3 == 0:
            raise Failure.of(ExitCode.UNAVAILABLE, "overloaded", "full")
        if number % 3 == 1:
            raise InvalidInput("width", 1, "more")
        return 0.0

    answered = []
    level = Level(2)
    await closed_loop(draw, level, 6, 60.0, lambda: answered.append(1))
    assert level.errors == {"overloaded": 2, "invalid_input": 2}
    assert (len(level.latencies), len(answered)) == (2, 6)


async def test_it_stops_by_itself_and_keeps_what_there_is() -> None:
    cancelled = 0

    async def draw(number: int) -> float:
        nonlocal cancelled
        if number < 2:
            return 0.0
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return 0.0

    level = Level(4)
    await closed_loop(draw, level, 100, 0.05, nothing)
    assert (len(level.latencies), cancelled, level.cut_short) == (2, 4, True)


async def test_a_bug_is_no_figure() -> None:
    async def draw(_: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await closed_loop(draw, Level(1), 1, 60.0, nothing)
