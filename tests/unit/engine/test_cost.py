"""The cost table: what it has measured, and what it makes of that."""

from __future__ import annotations

import pytest

from sdxl_bento.engine.cost import HICCUP, KEPT_KEYS, SMOOTHING, CostTable
from sdxl_bento.engine.request import BatchKey, Phase, Request, Stage

BASE = BatchKey("m", Stage.BASE, 1024, 1024)


def test_unknown_costs_nothing_so_that_it_is_let_in() -> None:
    assert CostTable().unit(BASE, 4) == 0.0


def test_between_known_row_counts_it_is_linear() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.2)
    cost.observe(BASE, 4, 0.3)
    assert cost.unit(BASE, 3) == pytest.approx(0.25)
    assert cost.unit(BASE, 1) == pytest.approx(0.2), "fewer rows: as the smallest known"
    assert cost.unit(BASE, 8) == pytest.approx(0.6), "more rows: in proportion"


def test_another_size_is_scaled_by_pixels_from_the_nearest() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.4)
    cost.observe(BASE._replace(height=256, width=256), 2, 9.0)
    assert cost.unit(BASE._replace(height=1024, width=768), 2) == pytest.approx(0.3)
    assert cost.unit(BASE._replace(model="other"), 2) == 0.0


def test_it_learns_smoothly() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.1)
    cost.observe(BASE, 2, 0.2)
    assert cost.unit(BASE, 2) == pytest.approx(0.1 + SMOOTHING * 0.1)


def test_a_hiccup_is_not_a_new_normal() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.1)
    cost.observe(BASE, 2, 60.0)
    assert cost.unit(BASE, 2) == pytest.approx(0.1 + SMOOTHING * (HICCUP - 1) * 0.1)


def test_a_cell_that_began_at_zero_still_learns() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.0)
    cost.observe(BASE, 2, 0.1)
    assert cost.unit(BASE, 2) == pytest.approx(0.1)


def test_estimates_hold_until_they_have_drifted() -> None:
    cost = CostTable()
    cost.observe(BASE, 2, 0.1)
    assert cost.unit(BASE, 2) == 0.1
    epoch = cost.epoch
    cost.observe(BASE, 2, 0.11)  # smoothed, 2 %
    assert (cost.epoch, cost.unit(BASE, 2)) == (epoch, 0.1)
    for _ in range(5):  # each step is small, their sum is not
        cost.observe(BASE, 2, 0.11)
    assert cost.epoch > epoch
    assert cost.unit(BASE, 2) > 0.105


def test_what_was_read_off_another_size_follows_it() -> None:
    cost = CostTable()
    half = BASE._replace(width=512)
    cost.observe(BASE, 2, 0.1)
    assert cost.unit(half, 2) == pytest.approx(0.05)
    for _ in range(50):
        cost.observe(BASE, 2, 0.2)
    assert cost.unit(half, 2) == pytest.approx(0.1, rel=0.06)
    cost.observe(half, 2, 0.5)
    assert cost.unit(half, 2) == 0.5


def test_remaining_follows_the_request() -> None:
    cost = CostTable()
    phases = (Phase(Stage.BASE, 3, 2), Phase(Stage.DECODE, 1, 1))
    request = Request("r", "m", 1024, 1024, phases)
    cost.observe(request.keys[0], 2, 0.1)
    cost.observe(request.keys[1], 1, 0.5)
    left = []
    while not request.launched_all:
        left.append(cost.remaining(request))
        request.advance()
    assert left == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert cost.remaining(request) == 0.0


def test_a_profile_survives_the_way_out_and_in() -> None:
    cost, again = CostTable(), CostTable()
    cost.observe(BASE, 2, 0.2)
    cost.observe(BASE, 4, 0.3)
    cost.observe(BatchKey("m", Stage.ENCODE, 0, 0), 1, 0.01)
    again.load(cost.dump())
    assert again.dump() == cost.dump()
    assert again.unit(BASE, 3) == cost.unit(BASE, 3)


def test_sizes_without_end_do_not_fill_the_memory() -> None:
    cost = CostTable()
    often = BatchKey("m", Stage.BASE, 8, 8)
    for side in range(1, 2 * KEPT_KEYS):
        cost.observe(BatchKey("m", Stage.BASE, 8 * side, 8), 1, float(side))
        cost.observe(often, 1, 1.0)
    kept = {cell["height"] for cell in cost.dump()}
    assert len(kept) == KEPT_KEYS
    assert {8, 8 * (2 * KEPT_KEYS - 1)} <= kept, "the one that is always used, and the newest"
    assert 16 not in kept
