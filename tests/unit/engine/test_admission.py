"""Who is let in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.request import Fewer, Phase, Stage
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import DeadlineInfeasible, InvalidInput, NotReady, Overloaded
from tests.unit.engine.conftest import Bench


def plan(steps: int) -> tuple[tuple[Phase, ...], object]:
    phases = (Phase(Stage.ENCODE, 1, 1), Phase(Stage.BASE, steps, 1), Phase(Stage.DECODE, 1, 1))
    return phases, f"{steps} steps"


def test_the_queue_is_bounded_by_requests(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_running=2), QueueLimits(max_requests=1))
    for id_ in "abc":
        bench.submit(id_)
    with pytest.raises(Overloaded) as refusal:
        bench.submit("d")
    assert refusal.value.retry_after_s >= 1
    assert len(bench.engine) == 3, "nothing is kept of who was refused"


def test_the_queue_is_bounded_by_pixels(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_running=1), QueueLimits(max_pixels=2_000_000))
    bench.submit("a")
    bench.run_units(1)
    bench.submit("b")
    bench.submit("c")
    with pytest.raises(Overloaded, match=r"2\.0 megapixels"):
        bench.submit("d")


def test_what_cannot_be_done_in_time_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(DeadlineInfeasible) as refusal:
        bench.submit("a", 98, slo=0.9)  # a second of work
    assert refusal.value.slo_s == pytest.approx(0.9)
    assert refusal.value.estimate_s > 1.0
    assert not len(bench.engine)


def test_promised_work_due_earlier_counts(bench: Bench) -> None:
    bench.submit("first", 48, slo=0.8, model="n")
    with pytest.raises(DeadlineInfeasible):
        bench.submit("second", 48, slo=1.0)
    bench.submit("second", 48, slo=1.5)


def test_a_newcomer_must_not_break_an_earlier_promise(bench: Bench) -> None:
    bench.submit("promised", 58, slo=0.8, model="n")
    with pytest.raises(DeadlineInfeasible):
        bench.submit("urgent", 18, slo=0.4)


def test_work_without_a_deadline_keeps_nobody_out(bench: Bench) -> None:
    for i in range(20):
        bench.submit(f"patient{i}", 50)
    bench.submit("urgent", 20, slo=0.5, model="n")


def test_without_a_deadline_nobody_is_too_late(bench: Bench) -> None:
    bench.submit("promised", 70, slo=0.85)
    bench.submit("patient", 500)


def test_nothing_known_lets_in(bench: Bench) -> None:
    request = bench.request("a", 500, slo=0.001)
    for known in (bench.cost._cells, bench.cost._estimates):
        known.clear()
    bench.engine.submit(request)


def test_steps_are_taken_off_only_as_needed(bench: Bench) -> None:
    request = bench.request("a", 100, slo=0.5)
    steps = bench.engine.submit(request, Fewer(100, 10, plan))
    assert steps is not None
    assert 30 < steps < 50
    assert request.phases == plan(steps)[0]
    assert request.payload == f"{steps} steps"
    bench.run()
    assert request.ended is not None
    assert request.ended <= 0.5


def test_no_step_is_taken_off_where_there_is_time(bench: Bench) -> None:
    request = bench.request("a", 20, slo=5.0)
    assert bench.engine.submit(request, Fewer(20, 10, plan)) is None
    assert request.payload is None


def test_even_the_floor_may_be_too_late(bench: Bench) -> None:
    request = bench.request("a", 100, slo=0.2)
    with pytest.raises(DeadlineInfeasible):
        bench.engine.submit(request, Fewer(100, 50, plan))
    assert request.phases[1].steps == 100


def test_a_plan_that_cannot_be_made_with_few_steps_is_passed_over(bench: Bench) -> None:
    def picky(steps: int) -> tuple[tuple[Phase, ...], object]:
        if steps < 20:
            raise InvalidInput("high_noise_frac", 0.8, "a share that leaves steps to both")
        return plan(steps)

    request = bench.request("a", 100, slo=0.5)
    steps = bench.engine.submit(request, Fewer(100, 1, picky))
    assert steps is not None
    assert steps >= 20


def test_a_closed_engine_takes_nobody(bench: Bench) -> None:
    running = bench.submit("a")
    bench.engine.close()
    with pytest.raises(NotReady):
        bench.submit("b")
    bench.run()
    assert running.result is not None


def test_an_id_is_taken_while_it_is_at_work(bench: Bench) -> None:
    bench.submit("a")
    with pytest.raises(ValueError, match="at work"):
        bench.submit("a")
    bench.run()
    bench.submit("a")
