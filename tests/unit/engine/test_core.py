"""The engine's step: how requests end, one by one, whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.fake import Faults, expected_result
from sdxl_bento.engine.request import Request, Stage, Status
from sdxl_bento.errors import (
    EngineDead,
    InvalidInput,
    NumericalError,
    OutOfMemory,
    RequestCancelled,
    RequestFailed,
    RequestNotFound,
)
from tests.unit.engine.conftest import Bench


def test_an_idle_engine_has_nothing_to_do(bench: Bench) -> None:
    assert not bench.engine.step()


def test_progress_tells_every_step_in_order(bench: Bench) -> None:
    told: list[tuple[Stage, int]] = []
    request = bench.request("a", 2, refine=1)
    request.on_progress = lambda _, stage, step, preview: told.append((stage, step))
    bench.engine.submit(request)
    bench.run()
    assert told == [
        (Stage.ENCODE, 1),
        (Stage.BASE, 1),
        (Stage.BASE, 2),
        (Stage.REFINE, 1),
        (Stage.DECODE, 1),
    ]
    assert request.status is Status.FINISHED
    assert request.result == expected_result(request)
    assert sum(request.stage_s.values()) == pytest.approx(request.ended)


def test_at_most_two_units_are_in_flight(bench: Bench) -> None:
    request = bench.submit("a", 10)
    for _ in range(8):
        bench.engine.step()
        assert request.in_flight <= 2


def test_a_cancelled_request_ends_at_the_next_step(bench: Bench) -> None:
    request, other = bench.submit("a", 10), bench.submit("b", 10)
    bench.run_units(4)
    assert request.in_flight
    bench.engine.cancel("a")
    bench.engine.step()
    assert request.status is Status.CANCELLED
    assert isinstance(request.error, RequestCancelled)
    assert bench.executor.released == ["a"]
    bench.run()
    assert request.in_flight == 0
    assert other.result == expected_result(other)
    assert bench.units[4][1] == "b"


def test_who_waits_can_be_cancelled_too(bench: Bench) -> None:
    request = bench.submit("a")
    bench.engine.cancel("a")
    bench.run()
    assert request.status is Status.CANCELLED
    assert bench.units == []


def test_there_is_no_cancelling_what_is_not_there(bench: Bench) -> None:
    bench.submit("a")
    bench.run()
    with pytest.raises(RequestNotFound):
        bench.engine.cancel("a")


def test_too_large_a_batch_is_halved_and_the_limit_remembered(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(faults=Faults(fits=lambda key, rows, now: rows <= 3))
    requests = [bench.submit(f"r{i}", 3) for i in range(8)]
    bench.run()
    assert all(request.result == expected_result(request) for request in requests)
    assert bench.engine.scheduler.row_limit(requests[0].keys[1]) == 2


def test_who_alone_does_not_fit_fails(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(faults=Faults(fits=lambda key, rows, now: key.height <= 1000))
    small, large = bench.submit("small", 2), bench.submit("large", 2, side=2000)
    bench.run()
    assert isinstance(large.error, OutOfMemory)
    assert small.result == expected_result(small)


def test_memory_is_asked_for_again_when_the_device_is_empty(
    make_bench: Callable[..., Bench],
) -> None:
    """A unit in flight may hold what is missing: that is not yet the request's own fault."""
    bench = make_bench()
    bench.faults.fits = lambda key, rows, now: not bench.engine._in_flight
    request = bench.submit("a", 3)
    bench.run()
    assert request.result == expected_result(request)


def test_what_is_in_flight_ends_before_a_unit_is_tried_again(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.submit("a", 5)
    bench.run_units(3)
    allowed: list[int] = []
    collect = bench.executor.collect

    def noted(max_in_flight: int) -> list[Completion]:
        allowed.append(max_in_flight)
        return list(collect(max_in_flight))

    bench.executor.collect = noted  # type: ignore[method-assign,assignment]
    bench.engine.step()
    bench.faults.fits = lambda key, rows, now: False
    bench.engine.step()
    assert allowed == [2, 0]


def test_an_error_in_a_batch_ends_only_who_caused_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(faults=Faults(raises={"bad": (Stage.BASE, 1)}))
    bad, well = bench.submit("bad", 4), bench.submit("well", 4)
    bench.run()
    assert bad.status is Status.FAILED
    assert isinstance(bad.error, RequestFailed)
    assert isinstance(bad.error.__cause__, RuntimeError)
    assert well.result == expected_result(well)
    assert not well.alone


def test_numbers_that_are_not_finite_end_only_their_request(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(faults=Faults(not_finite={"bad": (Stage.BASE, 1)}))
    bad, well = bench.submit("bad", 4), bench.submit("well", 4)
    bench.run()
    assert isinstance(bad.error, NumericalError)
    assert well.result == expected_result(well)


@pytest.mark.parametrize("error", [InvalidInput("loras", "x", "one that fits"), OSError("gone")])
def test_who_can_never_be_ready_fails(make_bench: Callable[..., Bench], error: Exception) -> None:
    bench = make_bench(faults=Faults(unfit={"bad": error}))
    bad, well = bench.submit("bad"), bench.submit("well")
    bench.run()
    assert bad.error is error or (bad.error is not None and bad.error.__cause__ is error)
    assert type(bad.error) is (InvalidInput if isinstance(error, InvalidInput) else RequestFailed)
    assert well.result == expected_result(well)


def test_callbacks_that_raise_harm_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a client's mistake")

    request = bench.request("a")
    request.on_progress = request.on_end = fail
    bench.engine._on_unit = fail
    bench.engine.submit(request)
    with caplog.at_level(logging.ERROR):
        bench.run()
    assert request.status is Status.FINISHED
    assert {"on_progress has failed", "on_end has failed", "on_unit has failed"} <= {
        record.message for record in caplog.records
    }


def test_an_executor_that_breaks_stops_the_step_and_all_can_be_ended(bench: Bench) -> None:
    ended: list[Request] = []
    requests = [bench.request(id_) for id_ in "abc"]
    for request in requests:
        request.on_end = ended.append
        bench.engine.submit(request)

    def collect(max_in_flight: int) -> list[Completion]:
        raise RuntimeError("the device is gone")

    bench.executor.collect = collect  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError, match="gone"):
        bench.engine.step()
    bench.engine.close()
    bench.engine.fail_all(EngineDead("the engine has died"))
    assert ended == requests
    assert all(isinstance(request.error, EngineDead) for request in requests)
    assert sorted(bench.executor.released) == ["a", "b", "c"]
    assert not len(bench.engine)


def test_units_are_counted_and_measured(bench: Bench) -> None:
    seen: list[Completion] = []
    bench.engine._on_unit = seen.append
    bench.submit("a", 3, rows=2)
    bench.run()
    assert [completion.unit.rows for completion in seen] == [1, 2, 2, 2, 1]
    assert sum(completion.seconds for completion in seen) == pytest.approx(bench.clock.now)
