"""Which rows run next: each rule by itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from sdxl_bento.engine.fake import Faults
from sdxl_bento.engine.ledger import Ledger
from sdxl_bento.engine.request import BatchKey, Request, Stage, Unit
from sdxl_bento.engine.scheduler import MAX_DECODES, MAX_PROBE_S, PROBE_S, Limits, Scheduler
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
    bench.run_units(4)
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


def test_a_turn_comes_in_proportion_to_the_work_and_never_later_than_the_limit(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(Limits(ageing_s=2.0))
    bench.clock.now = 5.0
    assert bench.submit("short", 8).turn == pytest.approx(5.0 + 4 * 0.1)
    assert bench.submit("long", 98).turn == pytest.approx(5.0 + 2.0)


def test_priority_moves_the_due_time_by_a_share_of_the_ageing(bench: Bench) -> None:
    scheduler = bench.engine.scheduler
    plain, higher = bench.submit("a"), bench.submit("b", priority=2)
    due, _ = scheduler.urgency(plain, promised=False)
    assert scheduler.urgency(higher, promised=False) == (pytest.approx(due - 2 * 0.05 * 30.0), 0.0)
    bound = bench.submit("c", slo=5.0)
    assert scheduler.urgency(bound, promised=True) == (5.0, 0.0)
    assert scheduler.urgency(bound, promised=False)[0] == bound.turn


def test_a_promise_has_a_grace_of_a_tenth_of_its_time(bench: Bench) -> None:
    request = bench.submit("a", 8, slo=1.0)  # 0.1 s of work
    scheduler = bench.engine.scheduler
    assert scheduler.promised(request, 0.99)
    assert not scheduler.promised(request, 1.01)
    assert not scheduler.promised(bench.submit("b"), 0.0)


def test_a_learned_limit_is_tried_again_after_a_time_that_doubles(bench: Bench) -> None:
    scheduler = bench.engine.scheduler
    request = bench.submit("a", rows=9)
    bench.run_units(1)
    unit = Unit(request.keys[1], (request,), (0,))
    key = unit.key
    assert (unit.rows, scheduler.row_limit(key)) == (9, 16)
    at, wait = 0.0, PROBE_S
    for _ in range(8):
        scheduler.halve(unit, at)
        assert scheduler.row_limit(key) == 4
        scheduler._probe(at + wait - 0.1)
        assert scheduler.row_limit(key) == 4
        at += wait
        scheduler._probe(at)
        assert scheduler.row_limit(key) == 8
        scheduler._probe(at + wait - 0.1)
        assert scheduler.row_limit(key) == 8, "once for each wait"
        wait = min(2 * wait, MAX_PROBE_S)
    assert wait == MAX_PROBE_S
    scheduler._probe(at + 2 * MAX_PROBE_S)
    assert scheduler.row_limit(key) == 16
    scheduler.halve(Unit(key, (bench.submit("b"),), (0,)), at)
    assert scheduler.row_limit(key) == 1, "one row is always tried"


def begun(bench: Bench, *requests: Request) -> list[Request]:
    """All of them, in order of urgency, at their first step."""
    for request in requests:
        request.advance()
    scheduler = bench.engine.scheduler
    return sorted(requests, key=lambda r: scheduler.urgency(r, r.deadline is not None))


def test_debt_lets_a_step_pass_a_promise_once_it_suffices(bench: Bench) -> None:
    """A step is 0.01 s, and the tight one cannot spare it."""
    tight = bench.submit("tight", 30, slo=0.4, model="n")
    patient = bench.submit("patient", 5)
    able = begun(bench, tight, patient)
    scheduler = bench.engine.scheduler
    scheduler._last_was_short = False
    ledger = Ledger(bench.cost, scheduler.row_limit, [tight], bench.clock.now + 0.1)
    assert able[0] is patient, "its turn comes first"
    assert ledger.spare_for(patient) < 0.01
    for owed, lead in ((0.0, tight), (0.0099, tight), (0.0101, patient)):
        scheduler._owed = owed
        assert scheduler._lead(able, ledger) is lead


def test_debt_is_not_for_those_with_a_promise(bench: Bench) -> None:
    tight = bench.submit("tight", 30, slo=0.4, model="n")
    loose = bench.submit("loose", 10, slo=0.9, priority=10)  # which puts it first
    able = begun(bench, tight, loose)
    scheduler = bench.engine.scheduler
    ledger = Ledger(bench.cost, scheduler.row_limit, able, bench.clock.now + 0.1)
    assert able[0] is loose
    scheduler._owed = 1.0
    assert scheduler._lead(able, ledger) is tight


def test_debt_grows_by_a_tenth_of_promised_units_and_is_paid_by_others(bench: Bench) -> None:
    tight = bench.submit("tight", 30, slo=0.9, model="n")
    patient = bench.submit("patient", 10)
    able = begun(bench, tight, patient)
    scheduler = bench.engine.scheduler
    ledger = Ledger(bench.cost, scheduler.row_limit, [tight], bench.clock.now)
    promised, other = (Unit(r.key, (r,), (0,)) for r in (tight, patient))
    scheduler._owed = 0.0
    for units in (1, 2, 3):
        scheduler._settle_debt(promised, able, ledger)
        assert scheduler._owed == pytest.approx(units * 0.1 * 0.01)
    scheduler._owed = 0.015
    scheduler._settle_debt(other, able, ledger)
    assert scheduler._owed == pytest.approx(0.005)
    scheduler._settle_debt(other, able, ledger)
    assert scheduler._owed == 0.0, "nobody owes in the other direction"
    scheduler._owed = 0.005
    scheduler._settle_debt(promised, [tight], ledger)
    assert scheduler._owed == 0.0, "nobody is there to claim it"


def test_what_is_owed_counts_as_work_to_be_done_before_promises(bench: Bench) -> None:
    request = bench.submit("a", 8, slo=1.0)
    scheduler = bench.engine.scheduler
    before = scheduler.ledger(0.0, 0.0).spare_of(request)
    scheduler._owed = 0.2
    assert scheduler.ledger(0.0, 0.1).spare_of(request) == pytest.approx(before - 0.9 * 0.3)


def test_the_toll_is_the_longest_step_of_those_without_a_promise(bench: Bench) -> None:
    bench.submit("two", rows=2)
    bench.submit("five", rows=5)
    bench.submit("bound", rows=9, slo=5.0)
    bench.run_units(1)
    assert bench.engine.scheduler.ledger(bench.clock.now, 0.0)._toll == pytest.approx(0.05)


def test_pictures_are_decoded_a_few_at_a_time(bench: Bench) -> None:
    for i in range(6):
        bench.submit(f"r{i}", 2)
    bench.run()
    assert [len(ids.split()) for ids in bench.order("decode")] == [MAX_DECODES, 2]


def test_who_must_run_alone_shares_no_forward(bench: Bench) -> None:
    requests = [bench.submit(id_, 3) for id_ in "abc"]
    bench.run_units(1)
    requests[1].alone = True
    bench.run()
    assert next(ids for ids in bench.order("base") if "b" in ids) == "b"
    assert "a c" in bench.order("base"), "nor do the others wait for it"
