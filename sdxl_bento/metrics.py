"""What Prometheus is told. Every label takes its values from a short fixed list."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from sdxl_bento import errors

if TYPE_CHECKING:
    from sdxl_bento.generation import ModelSummary, Timings

_OUTCOMES: Mapping[type[BaseException], str] = {
    errors.InvalidInput: "invalid",
    errors.NotFound: "not_found",
    errors.Refused: "refused",
    errors.RequestCancelled: "cancelled",
    TimeoutError: "timeout",
    BaseException: "failed",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


class Metrics:
    """The counters of this process; BentoML's /metrics adds those of all workers up."""

    def __init__(self) -> None:
        # Imported late: the client looks for the multiprocess folder when it is imported.
        from prometheus_client import Counter, Gauge, Histogram

        self._requests = Counter(
            "sdxl_requests", "Calls that have ended, by outcome.", ["protocol", "outcome"]
        )
        self._images = Counter("sdxl_images", "Pictures that were made.", ["protocol"])
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
        self._pictures = Gauge(
            "sdxl_pictures",
            "Pictures in the engine, each on its own, by state.",
            ["state"],
            multiprocess_mode="livesum",
        )

        self._start = Gauge(
            "sdxl_model_start_seconds",
            "Time to load a model and to warm it up, the longest of the workers.",
            ["model", "phase"],
            multiprocess_mode="livemax",
        )

    @contextmanager
    def request(self, protocol: str) -> Iterator[None]:
        """Count and time the call that runs inside; an exception decides its outcome."""
        begin = time.perf_counter()
        outcome = "ok"
        with self._in_progress.labels(protocol).track_inprogress():
            try:
                yield
            except BaseException as error:
                outcome = next(_OUTCOMES[cls] for cls in type(error).__mro__ if cls in _OUTCOMES)
                raise
            finally:
                self._requests.labels(protocol, outcome).inc()
                self._seconds.labels(protocol).observe(time.perf_counter() - begin)

    def load(self, stats: Mapping[str, object]) -> None:
        """Note how busy the engine is, by `Generator.stats`."""
        for state in ("running", "waiting"):
            count = stats.get(state)
            self._pictures.labels(state).set(count if isinstance(count, int) else 0)

    def started(self, models: Iterable[ModelSummary]) -> None:
        """Note what the start of each model took; there are as many as the settings name."""
        for model in models:
            self._start.labels(model.name, "load").set(model.load_seconds)
            self._start.labels(model.name, "warm_up").set(model.warm_up_seconds)

    def generated(self, protocol: str, images: int, timings: Timings) -> None:
        """Count the pictures of one call and the time that each stage took."""
        self._images.labels(protocol).inc(images)
        for name, seconds in asdict(timings).items():
            stage = name.removesuffix("_s")
            if stage != "total" and seconds > 0:  # no refiner, no refine stage
                self._stages.labels(stage).observe(seconds)


@cache
def metrics() -> Metrics:
    """The one `Metrics` of this process: Prometheus refuses a second counter of the same name."""
    return Metrics()
