"""The metrics for Prometheus; docs/reference/metrics.md lists them.

Every label takes its values from a short list, so no name that a client has made up becomes a time
series. The engine's thread does not use this module: it records its work in plain containers
(`activity`), and `lifecycle.report_load` moves that here once a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from sdxl_bento import errors
from sdxl_bento.config import prometheus_folder

if TYPE_CHECKING:
    from prometheus_client import Counter

    from sdxl_bento.serving.gpu import Usage
    from sdxl_bento.serving.results import Generation, ModelSummary, UnitDone

_OUTCOMES: Mapping[type[BaseException], str] = {
    errors.InvalidInput: "invalid",
    errors.NotFound: "not_found",
    errors.Refused: "refused",
    errors.RequestCancelled: "cancelled",
    asyncio.CancelledError: "cancelled",
    TimeoutError: "timeout",
    BaseException: "failed",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_UNIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)


class Metrics:
    """The metrics of this process. BentoML's /metrics adds up those of all workers.

    The value of a gauge is the sum or the maximum over the live workers (`livesum`, `livemax`).
    """

    def __init__(self) -> None:
        # prometheus_client is imported late everywhere here, because it looks for the folder of a
        # server with several processes when it is imported.
        forget_dead_workers()
        self._totals: dict[tuple[str, str], int] = {}

        self._define_calls()
        self._define_store()
        self._define_engine()
        self._define_common_names()

    def _define_calls(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._requests = Counter(
            "sdxl_requests", "Calls that have ended, by outcome.", ["protocol", "outcome"]
        )
        self._images = Counter("sdxl_images", "Pictures that were drawn.", ["protocol"])
        self._seconds = Histogram(
            "sdxl_request_seconds", "Arrival to answer.", ["protocol"], buckets=_SECONDS
        )
        self._stages = Histogram(
            "sdxl_stage_seconds", "Time in one stage of a call.", ["stage"], buckets=_SECONDS
        )
        self._in_progress = Gauge(
            "sdxl_requests_in_progress",
            "Calls that have begun and not ended.",
            ["protocol"],
            multiprocess_mode="livesum",
        )
        self._slo = Counter(
            "sdxl_slo", "Calls with slo_ms: met, missed, or refused at the door.", ["outcome"]
        )
        self._turned_away = Counter(
            "sdxl_turned_away",
            "Requests and connections that ended before they became calls.",
            ["reason"],
        )
        self._result_cache = Counter(
            "sdxl_result_cache", "Pictures that were looked up before drawing.", ["result"]
        )

    def _define_store(self) -> None:
        from prometheus_client import Counter, Gauge

        self._store_writes = Counter(
            "sdxl_store_writes", "Drawn pictures that were to be stored.", ["outcome"]
        )
        self._store_damaged = Counter(
            "sdxl_store_damaged", "Stored pictures that were damaged when they were read."
        )
        self._store_available = Gauge(
            "sdxl_store_available",
            "1, or 0 while a worker leaves the image store alone because it does not answer.",
            multiprocess_mode="livemin",
        )
        for outcome in ("stored", "failed", "skipped"):
            self._store_writes.labels(outcome)

    def _define_engine(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._pictures = Gauge(
            "sdxl_pictures",
            "Pictures in the engine, each on its own, by state.",
            ["state"],
            multiprocess_mode="livesum",
        )
        self._unit_seconds = Histogram(
            "sdxl_unit_seconds",
            "Device time of one unit of work; a step of a batch, in the stages that denoise.",
            ["stage"],
            buckets=_UNIT_SECONDS,
        )
        self._unit_rows = Histogram(
            "sdxl_unit_rows", "Rows that shared one unit of work.", ["stage"], buckets=_ROWS
        )
        self._counted: dict[str, Counter] = {
            "loras": Counter(
                "sdxl_loras",
                "Adapters of requests: found in memory (hits), loaded, failed to load.",
                ["result"],
            ),
            "prompt_cache": Counter(
                "sdxl_prompt_cache", "Prompts that were looked up before encoding.", ["result"]
            ),
        }
        self._damaged = Gauge(
            "sdxl_damaged_files",
            "Files of the models that are not as they were exported, the most of the workers.",
            multiprocess_mode="livemax",
        )
        self._start = Gauge(
            "sdxl_model_start_seconds",
            "Time to load a model and to warm it up, the longest of the workers.",
            ["model", "phase"],
            multiprocess_mode="livemax",
        )

    def _define_common_names(self) -> None:
        """Metrics under the names that dashboards for KServe's runtimes expect."""
        from prometheus_client import Counter, Gauge, Histogram

        self._inferences = Counter(
            "inference_request_count", "Calls that have ended.", ["model_name", "status"]
        )
        self._inference_seconds = Histogram(
            "inference_request_duration_seconds",
            "Arrival to answer.",
            ["model_name"],
            buckets=_SECONDS,
        )
        self._load_time = Gauge(
            "model_load_time_seconds",
            "Time to load a model, the longest of the workers.",
            ["model_name"],
            multiprocess_mode="livemax",
        )
        self._gpu_memory = Gauge(
            "gpu_memory_usage_bytes",
            "Memory of the GPU that is in use, by anybody.",
            ["device"],
            multiprocess_mode="livemax",
        )
        self._gpu_utilization = Gauge(
            "gpu_utilization_percent",
            "Share of the last sample in which the GPU was busy.",
            ["device"],
            multiprocess_mode="livemax",
        )

    @contextmanager
    def request(self, protocol: str, model: str | None) -> Iterator[None]:
        """Count and time the call that runs inside the context; an exception gives its outcome.

        `model` is the name of the model that was asked for; None if no such model is loaded.
        """
        name = model or "unknown"
        begin = time.perf_counter()
        outcome = "ok"
        with self._in_progress.labels(protocol).track_inprogress():
            try:
                yield
            except BaseException as error:
                outcome = next(_OUTCOMES[cls] for cls in type(error).__mro__ if cls in _OUTCOMES)
                if isinstance(error, errors.DeadlineInfeasible):
                    self._slo.labels("refused").inc()
                raise
            finally:
                seconds = time.perf_counter() - begin
                self._requests.labels(protocol, outcome).inc()
                self._seconds.labels(protocol).observe(seconds)
                status = "success" if outcome == "ok" else "error"
                self._inferences.labels(name, status).inc()
                self._inference_seconds.labels(name).observe(seconds)

    def generated(self, protocol: str, generation: Generation) -> None:
        """Count the pictures of one call, the time of each stage, and whether it was in time."""
        if generation.images:
            self._images.labels(protocol).inc(len(generation.images))
            self._stage_times(generation)
        slo_ms = generation.params.slo_ms
        if slo_ms is not None:
            met = generation.timings.total_s * 1e3 <= slo_ms
            self._slo.labels("met" if met else "missed").inc()

    def looked_up(self, hits: int, misses: int) -> None:
        """Count the pictures of one call that the result cache had, and those that it lacked."""
        self._result_cache.labels("hits").inc(hits)
        self._result_cache.labels("misses").inc(misses)

    def store_write(self, outcome: str) -> None:
        """Count a picture that the image store was to take: `stored`, `failed` or `skipped`."""
        self._store_writes.labels(outcome).inc()

    def store_damaged(self) -> None:
        """Count a stored picture that was damaged when it was read."""
        self._store_damaged.inc()

    def store_available(self, available: bool) -> None:
        """Set whether the image store answers."""
        self._store_available.set(available)

    def turned_away(self, reason: str) -> None:
        """Count a request or a connection that ended before it became a call."""
        self._turned_away.labels(reason).inc()

    def _stage_times(self, generation: Generation) -> None:
        for name, seconds in asdict(generation.timings).items():
            stage = name.removesuffix("_s")
            # A call without the refiner has no time for its stage. The total is another metric.
            if stage == "queue" or (stage != "total" and seconds > 0):
                self._stages.labels(stage).observe(seconds)

    def load(self, stats: Mapping[str, object]) -> None:
        """Set how busy the engine is, and count the work of its caches, from `Activity.stats`."""
        for state in ("running", "waiting"):
            count = stats.get(state)
            self._pictures.labels(state).set(count if isinstance(count, int) else 0)
        damaged = stats.get("damaged_files")
        self._damaged.set(damaged if isinstance(damaged, int) else 0)
        for name, counter in self._counted.items():
            totals = stats.get(name)
            for result, total in totals.items() if isinstance(totals, Mapping) else ():
                before = self._totals.get((name, result), 0)
                counter.labels(result).inc(max(total - before, 0))
                self._totals[name, result] = total

    def units(self, done: Iterable[UnitDone]) -> None:
        """Count the units of work that the engine has run, from `Activity.units`."""
        for unit in done:
            self._unit_seconds.labels(unit.stage).observe(unit.seconds)
            self._unit_rows.labels(unit.stage).observe(unit.rows)

    def started(self, models: Iterable[ModelSummary]) -> None:
        """Set how long the start of each model took."""
        for model in models:
            self._start.labels(model.name, "load").set(model.load_seconds)
            self._start.labels(model.name, "warm_up").set(model.warm_up_seconds)
            self._load_time.labels(model.name).set(model.load_seconds)

    def gpu(self, usage: Usage) -> None:
        """Set what a GPU is doing."""
        self._gpu_memory.labels(usage.device).set(usage.memory_bytes)
        if usage.busy_percent is not None:
            self._gpu_utilization.labels(usage.device).set(usage.busy_percent)


def forget_dead_workers() -> None:
    """Drop the gauges of workers that were killed, which would otherwise be added up for ever."""
    from prometheus_client.multiprocess import mark_process_dead

    folder = prometheus_folder()
    files = folder.glob("gauge_live*_*.db") if folder is not None else ()
    for pid in {int(path.stem.rpartition("_")[2]) for path in files}:
        try:
            os.kill(pid, 0)  # sends no signal, but fails if there is no such process
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue


@cache
def metrics() -> Metrics:
    """The only `Metrics` of this process: Prometheus refuses a second counter of the same name."""
    return Metrics()
