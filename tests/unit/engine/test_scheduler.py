"""Which rows run next: each rule by itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from sdxl_bento.engine.fake import Faults
from sdxl_bento.engine.request import BatchKey, Stage
from sdxl_bento.engine.scheduler import MAX_DECODES, Limits, Scheduler
from tests.unit.engine.conftest import Bench


def test_requests_of_one_key_share_every_forward(bench: Bench) -> None:
    bench.submit("a", 3)
    bench.submit("b", 3)
    bench.run()
    assert bench.units == [("encode", "a b"), *[("base", "a b")] * 3, ("decode", "a b")]


def test_a_newcomer_joins_at_the_next_step_and_leaves_when_done(bench: Bench) -> None:
    bench.submit("long", 6)
    bench.run_units(3)
    bench.submit("short", 2)
    bench.run()
    assert bench.units[3] == ("encode", "short")
    assert bench.order("base")[2:5] == ["short long", "short long", "long"]


@pytest.mark.parametrize("other", [{"model": "n"}, {"side": 500}])
def test_other_models_and_sizes_do_not_share(bench: Bench, other: dict[str, object]) -> None:
    bench.submit("a", 2)
    bench.submit("b", 2, **other)
    bench.run()
    assert all(" " not in ids for kind, ids in bench.units if kind == "base")


def test_short_work_goes_first_among_requests_without_a_deadline(bench: Bench) -> None:
    bench.submit("long", 20)
    bench.submit("short", 2, model="n")
    bench.run()
    assert bench.order("base")[:2] == ["short", "short"]


def test_nobody_is_passed_by_for_ever(bench: Bench) -> None:
    """Its turn is fixed when it arrives; a stream of shorter ones comes to be due later."""
    bench.submit("long", 20)
    for i in range(60):
        bench.submit(f"s{i}", 2, model="n")
        bench.run_units(3)
    assert bench.order("base").count("long") == 20


def test_the_earlier_deadline_goes_first(bench: Bench) -> None:
    bench.submit("later", 5, slo=5.0)
    bench.submit("sooner", 5, slo=1.0, model="n")
    bench.run()
    assert bench.order("base") == ["sooner"] * 5 + ["later"] * 5


def test_no_time_is_taken_that_a_promise_cannot_spare(bench: Bench) -> None:
    """The patient one's turn comes first, yet it gets no more than the share that is reserved."""
    bench.submit("patient", 10)
    tight = bench.submit("tight", 30, slo=0.39, model="n")
    bench.run()
    steps = bench.order("base")
    assert steps[:30].count("patient") <= 4
    assert tight.ended is not None
    assert tight.ended <= 0.39


def test_spare_time_goes_to_whose_turn_it_is(bench: Bench) -> None:
    bench.submit("patient", 10)
    tight = bench.submit("tight", 30, slo=0.9, model="n")
    bench.run()
    assert bench.order("base")[:10] == ["patient"] * 10
    assert tight.ended is not None
    assert tight.ended <= 0.9


def test_a_share_of_the_device_is_left_to_who_has_no_deadline(bench: Bench) -> None:
    """A tenth, while promises take all that they may."""
    bench.submit("patient", 6)
    for i in range(40):
        bench.submit(f"p{i}", 20, slo=0.3 * (i + 1), model="n")
    bench.run_units(200)
    assert bench.order("base").count("patient") == 6


def test_company_that_would_make_a_promise_late_stays_out(bench: Bench) -> None:
    """Rows cost time here, so a full batch would slow the tight one fivefold."""
    tight = bench.submit("tight", 30, slo=0.45)
    for i in range(4):
        bench.submit(f"p{i}", 30)
    bench.run()
    assert tight.ended is not None
    assert tight.deadline is not None
    assert tight.ended <= tight.deadline


def test_a_deadline_that_cannot_be_met_binds_nobody(bench: Bench) -> None:
    hopeless = bench.submit("hopeless", 10, slo=2.0)
    hopeless.deadline = bench.clock.now + 0.01
    assert not bench.engine.scheduler.promised(hopeless, bench.clock.now)
    bench.submit("sound", 10, slo=0.3, model="n")
    bench.run()
    assert bench.order("base")[:8].count("sound") >= 7


def test_priority_counts_among_equals(bench: Bench) -> None:
    bench.submit("low", 5, priority=-5)
    bench.submit("high", 5, model="n", priority=5)
    bench.run()
    assert bench.order("base")[:5] == ["high"] * 5


def test_short_units_alternate_with_steps(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_rows=1))
    for id_ in "abcd":
        bench.submit(id_, 6)
    bench.run()
    kinds = [kind for kind, _ in bench.units]
    first_decode = kinds.index("decode")
    for now, after in pairwise(kinds[:first_decode]):
        assert "base" in (now, after)


def test_rows_stay_within_the_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_rows=4))
    for id_ in "abc":
        bench.submit(id_, 2, rows=2)
    bench.run()
    assert max(len(ids.split()) for ids in bench.order("base")) == 2


def test_limits_by_rows_pixels_and_stage() -> None:
    scheduler = Scheduler(Bench().cost, Limits(max_rows=16, max_pixels=8_000_000))
    assert scheduler.row_limit(BatchKey("m", Stage.BASE, 500, 500)) == 16
    assert scheduler.row_limit(BatchKey("m", Stage.BASE, 1000, 1000)) == 8
    assert scheduler.row_limit(BatchKey("m", Stage.BASE, 4000, 4000)) == 1
    assert scheduler.row_limit(BatchKey("m", Stage.DECODE, 500, 500)) == MAX_DECODES
    assert scheduler.row_limit(BatchKey("m", Stage.ENCODE, 0, 0)) == 16


def test_only_so_many_begin_without_a_deadline(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_running=2))
    waiting = [bench.submit(f"r{i}", 10 + i) for i in range(4)]
    bench.submit("bound", 4, slo=5.0)
    bench.run_units(1)
    assert set(bench.engine.scheduler.running) == {"r0", "r1", "bound"}
    assert [bench.engine.position(request) for request in waiting] == [0, 0, 1, 2]
    assert bench.engine.counts() == {"waiting": 2, "running": 3}


def test_an_adapter_on_its_way_holds_up_nobody_else(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(faults=Faults(loads={"late": 0.05}))
    late, other = bench.submit("late", 2), bench.submit("other", 10)
    bench.run()
    assert other.result is not None
    assert late.result is not None
    assert "late" not in bench.units[0][1]
