"""Which counter moves, and by how much. What two workers add up to is tested over a server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY

from sdxl_bento import errors
from sdxl_bento.serving.gpu import Usage
from sdxl_bento.serving.metrics import Metrics, forget_dead_workers
from sdxl_bento.serving.results import (
    GeneratedImage,
    Generation,
    ModelSummary,
    Timings,
    UnitDone,
)
from tests.support.loaded_models import loaded, resolved


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


@pytest.fixture
def counters() -> Iterator[Metrics]:
    """Counters at zero. Those of the process, which other tests share, are put aside meanwhile."""
    others = list(REGISTRY._collector_to_names)
    for other in others:
        REGISTRY.unregister(other)
    yield Metrics()
    for own in list(REGISTRY._collector_to_names):
        REGISTRY.unregister(own)
    for other in others:
        REGISTRY.register(other)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.InvalidInput("width", 3, "more"), "invalid"),
        (errors.AdapterMismatch("x", ["k"], "wrong"), "invalid"),
        (errors.ModelNotFound("m"), "not_found"),
        (errors.Overloaded("full", 1), "refused"),
        (errors.NotReady("loading"), "refused"),
        (errors.RequestCancelled("x"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (TimeoutError(), "timeout"),
        (errors.EngineDead("x"), "failed"),
        (KeyError("a bug"), "failed"),
    ],
)
def test_an_exception_decides_the_outcome(
    counters: Metrics, error: BaseException, outcome: str
) -> None:
    with pytest.raises(type(error)), counters.request("p", "m"):
        raise error
    assert value("sdxl_requests_total", protocol="p", outcome=outcome) == 1
    assert value("sdxl_requests_total", protocol="p", outcome="ok") is None
    assert value("inference_request_count_total", model_name="m", status="error") == 1
    assert value("sdxl_slo_total", outcome="refused") is None


def test_a_call_that_ends_well(counters: Metrics) -> None:
    with counters.request("p", "m"):
        assert value("sdxl_requests_in_progress", protocol="p") == 1
    assert value("sdxl_requests_in_progress", protocol="p") == 0
    assert value("sdxl_requests_total", protocol="p", outcome="ok") == 1
    assert value("inference_request_count_total", model_name="m", status="success") == 1
    for name, labels in (("sdxl_request_seconds", {"protocol": "p"}),
                         ("inference_request_duration_seconds", {"model_name": "m"})):  # fmt: skip
        assert value(f"{name}_count", **labels) == 1
        assert 0 < (value(f"{name}_sum", **labels) or 0) < 30


def test_a_deadline_that_was_refused_is_counted_as_one(counters: Metrics) -> None:
    with pytest.raises(errors.DeadlineInfeasible), counters.request("p", None):
        raise errors.DeadlineInfeasible(1, 2, 3)
    assert value("sdxl_slo_total", outcome="refused") == 1
    assert value("sdxl_requests_total", protocol="p", outcome="refused") == 1
    assert value("inference_request_count_total", model_name="unknown", status="error") == 1


def generation(images: int, timings: Timings, **params: Any) -> Generation:
    order = resolved(loaded(), **params)
    drawn = [GeneratedImage(Image.new("RGB", (8, 8)), 1, index) for index in range(images)]
    return Generation("r", order, tuple(drawn), timings)


def test_pictures_and_the_time_of_each_stage(counters: Metrics) -> None:
    counters.generated("p", generation(3, Timings(0, 0.5, 2, 0, 0.25, 3)))
    assert value("sdxl_images_total", protocol="p") == 3
    sums = {"queue": 0, "encode": 0.5, "base": 2, "decode": 0.25}
    for stage, seconds in sums.items():
        assert value("sdxl_stage_seconds_count", stage=stage) == 1
        assert value("sdxl_stage_seconds_sum", stage=stage) == seconds
    for unused in ("refine", "total"):  # the time of all is `sdxl_request_seconds`
        assert value("sdxl_stage_seconds_count", stage=unused) is None
    assert value("sdxl_slo_total", outcome="met") is None


def test_cached_pictures_took_no_stage(counters: Metrics) -> None:
    counters.generated("p", generation(0, Timings(0, 0, 0, 0, 0, 0.1), slo_ms=100))
    assert value("sdxl_images_total", protocol="p") is None
    assert value("sdxl_stage_seconds_count", stage="queue") is None
    assert value("sdxl_slo_total", outcome="met") == 1  # to the millisecond
    counters.generated("p", generation(0, Timings(0, 0, 0, 0, 0, 0.1), slo_ms=99))
    assert value("sdxl_slo_total", outcome="missed") == 1


def test_look_ups(counters: Metrics) -> None:
    counters.looked_up(2, 5)
    assert value("sdxl_result_cache_total", result="hits") == 2
    assert value("sdxl_result_cache_total", result="misses") == 5


def test_totals_become_counters(counters: Metrics) -> None:
    for total in (10, 10, 12):
        counters.load({"loras": {"failures": total}, "prompt_cache": {"hits": total + 1}})
    assert value("sdxl_loras_total", result="failures") == 12
    assert value("sdxl_prompt_cache_total", result="hits") == 13
    counters.load({"loras": {"failures": 3}})  # smaller: nothing is taken back
    assert value("sdxl_loras_total", result="failures") == 12
    counters.load({"loras": {"failures": 5}})
    assert value("sdxl_loras_total", result="failures") == 14


def test_how_busy_the_engine_is(counters: Metrics) -> None:
    counters.load({"running": 3, "waiting": 4})
    assert [value("sdxl_pictures", state=state) for state in ("running", "waiting")] == [3, 4]
    counters.load({"state": "loading", "running": "?"})
    assert [value("sdxl_pictures", state=state) for state in ("running", "waiting")] == [0, 0]


def test_units(counters: Metrics) -> None:
    counters.units([UnitDone("base", 8, 0.02), UnitDone("base", 2, 0.01)])
    assert value("sdxl_unit_rows_sum", stage="base") == 10
    assert value("sdxl_unit_rows_count", stage="base") == 2
    assert value("sdxl_unit_seconds_sum", stage="base") == pytest.approx(0.03)


def test_the_start_of_each_model(counters: Metrics) -> None:
    model = ModelSummary("new", "m:1", True, 64, 64, 8, True, "fp32", "eager", "cpu", 1.5, 0.5)
    counters.started([model])
    for labels, seconds in (({"phase": "load"}, 1.5), ({"phase": "warm_up"}, 0.5)):
        assert value("sdxl_model_start_seconds", model="new", **labels) == seconds
    assert value("model_load_time_seconds", model_name="new") == 1.5


def test_gpus(counters: Metrics) -> None:
    counters.gpu(Usage("7", 5000, None))
    assert value("gpu_memory_usage_bytes", device="7") == 5000
    assert value("gpu_utilization_percent", device="7") is None
    counters.gpu(Usage("7", 6000, 33.0))
    assert value("gpu_memory_usage_bytes", device="7") == 6000
    assert value("gpu_utilization_percent", device="7") == 33


def test_only_the_gauges_of_dead_workers_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    alive, init, dead = os.getpid(), 1, done.pid  # of the second, we may not even ask
    names = [f"gauge_livesum_{pid}.db" for pid in (alive, init, dead)]
    names += [f"gauge_livemax_{dead}.db", f"counter_{dead}.db"]
    for name in names:
        (tmp_path / name).touch()

    def kill(pid: int, number: int) -> None:
        assert number == 0
        if pid == init:
            raise PermissionError
        if pid == dead:
            raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    forget_dead_workers()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"gauge_livesum_{alive}.db", f"gauge_livesum_{init}.db", f"counter_{dead}.db"}


def test_a_single_process_has_nothing_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    forget_dead_workers()


def buckets(counters: Metrics, name: str) -> list[float]:
    """The finite upper bounds of a histogram without labels of interest."""
    counters.units([UnitDone("base", 1, 0.1)])
    with counters.request("p", "m"):
        pass
    counters.generated("p", generation(1, Timings(0, 0, 1, 0, 0, 1)))
    bounds = {
        float(sample.labels["le"])
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"{name}_bucket"
    }
    return sorted(bounds - {float("inf")})


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("sdxl_request_seconds", 0.05, 320),
        ("sdxl_stage_seconds", 0.05, 320),
        ("inference_request_duration_seconds", 0.05, 320),
        ("sdxl_unit_seconds", 0.001, 10),
    ],
)
def test_a_quantile_is_off_by_little(
    counters: Metrics, name: str, least: float, most: float
) -> None:
    """Prometheus interpolates within a bucket, so that none may be wide."""
    bounds = buckets(counters, name)
    assert (bounds[0], bounds[-1]) == (least, most)
    ratios = [high / low for low, high in pairwise(bounds)]
    assert all(1.99 < ratio < 2.51 for ratio in ratios), ratios


def test_full_batches_have_a_bucket_of_their_own(counters: Metrics) -> None:
    """Batches are limited to powers of two more often than not."""
    bounds = buckets(counters, "sdxl_unit_rows")
    powers = {float(2**power) for power in range(9)}
    assert powers <= set(bounds)
    assert max(powers) == max(bounds) == 256  # the most that `max_batch_rows` may be
    between = [bound for bound in bounds if bound not in powers]
    assert between == [3, 6, 12, 24]
