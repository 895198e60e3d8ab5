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


@pytest.mark.parametrize("slo", [0.14, 0.15, 0.2, 0.31, 0.5, 0.77, 1.1, 1.15])
def test_the_most_steps_that_are_in_time_are_planned(bench: Bench, slo: float) -> None:
    """As trying one number after the other would find, the least and the most included."""
    admission, floor, asked = bench.engine.admission, 10, 100
    request = bench.request("a", asked, slo=slo)
    in_time = []
    for steps in range(floor, asked + 1):
        request.plan(*plan(steps))
        if admission.lateness(request, 0.0, 0.0) <= 0:
            in_time.append(steps)
    request.plan(*plan(asked))
    expected = None if asked in in_time or not in_time else max(in_time)
    assert admission.shorten(request, Fewer(asked, floor, plan), 0.0, 0.0) == expected
    assert request.phases[1].steps == (expected or asked)


def test_the_floor_and_one_less_than_asked_can_be_the_answer(bench: Bench) -> None:
    def late(steps: int) -> Callable[..., float]:
        """Whatever has more than so many steps."""
        return lambda request, *_: float(request.phases[1].steps > steps)

    for most in (10, 99):
        request = bench.request("a", 100, slo=1.0)
        bench.engine.admission.lateness = late(most)  # type: ignore[method-assign]
        fewer = Fewer(100, 10, plan)
        assert bench.engine.admission.shorten(request, fewer, 0.0, 0.0) == most


def test_the_limits_of_the_queue_are_inclusive(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Limits(max_running=1), QueueLimits(max_requests=2, max_pixels=3_000_000))
    for id_ in "abc":
        bench.submit(id_)
    # The first of the three will start before anything else, so only two of them are a queue.
    with pytest.raises(Overloaded, match=r"2 requests with 2\.0 megapixels wait"):
        bench.submit("d")
    bench = make_bench(Limits(max_running=1), QueueLimits(max_requests=9, max_pixels=2_000_000))
    bench.submit("a")
    bench.run_units(1)
    bench.submit("b")
    bench.submit("c", side=999)
    with pytest.raises(Overloaded):
        bench.submit("d", side=100)


def test_retry_after_is_when_the_first_of_those_at_work_ends(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(Limits(max_running=2), QueueLimits(max_requests=0))
    bench.submit("short", 298)
    bench.submit("long", 498)
    bench.run_units(1)
    with pytest.raises(Overloaded) as refusal:
        bench.submit("c")
    assert refusal.value.retry_after_s == pytest.approx(3.0, abs=0.02)


def test_a_refusal_tells_when_it_would_end_and_when_to_come_back(bench: Bench) -> None:
    bench.submit("promised", 198, slo=3.0)  # two seconds of work
    with pytest.raises(DeadlineInfeasible) as refusal:
        bench.submit("a", 98, slo=0.5, model="n")
    # A tenth of the device is kept for others, and a twentieth of the time as a margin.
    assert refusal.value.estimate_s == pytest.approx(0.5 + 0.05 * 0.5 - (0.9 * 0.5 - 1.0))
    assert refusal.value.retry_after_s == pytest.approx(2.0 / 0.9)
    with pytest.raises(DeadlineInfeasible) as refusal:
        bench.engine.admission.check(bench.request("b", 98, slo=0.5, model="n"), 0.0, busy=0.3)
    assert refusal.value.retry_after_s == pytest.approx(0.3 + 2.0 / 0.9)


def test_the_margin_is_a_share_of_the_time_there_is(bench: Bench) -> None:
    """0.9 of the time less 0.05 of it: 0.85 s of work fit into a second, and no more."""
    bench.engine.admission.check(bench.request("a", 82, slo=1.0), 0.0, 0.0)  # 0.84 s
    with pytest.raises(DeadlineInfeasible):
        bench.engine.admission.check(bench.request("b", 84, slo=1.0), 0.0, 0.0)  # 0.86 s
    with pytest.raises(DeadlineInfeasible):
        bench.engine.admission.check(bench.request("c", 82, slo=1.0), 0.0, busy=0.02)


def test_whoever_can_begin_at_once_is_no_part_of_the_queue(
    make_bench: Callable[..., Bench],
) -> None:
    """The queue's limits are for those who wait, however large a picture is."""
    bench = make_bench(Limits(max_running=2), QueueLimits(max_requests=0, max_pixels=1))
    bench.submit("a", side=2000)
    bench.submit("b", side=2000)
    with pytest.raises(Overloaded):
        bench.submit("c", side=64)
