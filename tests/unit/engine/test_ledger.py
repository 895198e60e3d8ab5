"""What each promise can spare."""

from __future__ import annotations

import pytest

from sdxl_bento.engine.ledger import NEVER, RESERVE, Ledger
from sdxl_bento.engine.request import Request
from tests.unit.engine.conftest import Bench

COUNTED = 1 - RESERVE


def ledger(bench: Bench, *promises: Request, limit: int = 16, toll: float = 0.0) -> Ledger:
    return Ledger(bench.cost, lambda key: limit, promises, bench.clock.now, toll)


def test_spare_time_is_what_work_due_by_then_leaves(bench: Bench) -> None:
    first = bench.request("first", 8, slo=1.0)  # 10 units of 10 ms
    second = bench.request("second", 18, slo=2.0, model="n")  # 20
    book = ledger(bench, second, first)
    assert book.spare_of(first) == pytest.approx(COUNTED * 1.0 - 0.1)
    assert book.spare_of(second) == pytest.approx(COUNTED * 2.0 - 0.3)
    assert book.work == pytest.approx(0.3)


def test_one_can_take_what_all_before_it_can_spare(bench: Bench) -> None:
    tight = bench.request("tight", 8, slo=0.2)
    loose = bench.request("loose", 8, slo=2.0, model="n")
    other = bench.request("other", 8)
    book = ledger(bench, tight, loose)
    assert book.spare_for(tight) == NEVER
    assert book.spare_for(loose) == pytest.approx(book.spare_of(tight))
    assert book.spare_for(other) == pytest.approx(book.spare_of(tight))
    assert book.holds(tight)
    assert not book.holds(other)


def test_whoever_rides_along_costs_what_its_rows_add(bench: Bench) -> None:
    """Where a forward costs the same for one row and for two, the second rides for nothing."""
    first, second = (bench.request(id_, 8, slo=slo) for id_, slo in (("a", 1.0), ("b", 2.0)))
    for rows in (1, 2):
        for _ in range(100):
            bench.cost.observe(first.keys[1], rows, 0.01)
    book = ledger(bench, first, second)
    assert book.riders == {"b"}
    assert book.work == pytest.approx(0.1 + 0.02, rel=0.01)
    assert not ledger(bench, first, second, limit=1).riders


def test_a_ride_is_paid_by_those_it_slows(bench: Bench) -> None:
    first = bench.request("a", 8, slo=1.0)
    second = bench.request("b", 8, slo=2.0)
    alone = ledger(bench, first).spare_of(first)
    assert ledger(bench, first, second).spare_of(first) == pytest.approx(alone - 8 * 0.01)


def test_nobody_rides_with_those_who_cannot_spare_it(bench: Bench) -> None:
    tight = bench.request("a", 8, slo=0.15)
    second = bench.request("b", 8, slo=2.0)
    book = ledger(bench, tight, second)
    assert not book.riders
    assert book.spare_of(tight) == pytest.approx(COUNTED * 0.15 - 0.1)


def test_the_toll_is_paid_for_every_short_unit(bench: Bench) -> None:
    request = bench.request("a", 8, slo=1.0)
    toll = ledger(bench, request, toll=0.05).spare_of(request)
    assert toll == pytest.approx(COUNTED * 1.0 - 0.1 - 2 * 0.05)
