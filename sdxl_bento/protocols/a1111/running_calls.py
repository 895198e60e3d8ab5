"""The calls of AUTOMATIC1111's clients that run in this process, and their progress.

AUTOMATIC1111's interface draws for one user at a time, and its /progress and /interrupt refer to
that one call. Here they refer to the call that has been running for longest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdxl_bento.pictures.encode import base64_of, encode
from sdxl_bento.protocols.a1111.answers import Automatic1111Progress, ProgressState
from sdxl_bento.serving.results import Progress


@dataclass
class RunningCall:
    """One call: the latest step of each of its pictures, and the latest preview.

    `start` is in seconds since the epoch.
    """

    request_id: str
    start: float = field(default_factory=time.time)
    latest: dict[int, Progress] = field(default_factory=dict)
    previewed: Progress | None = None

    def update(self, step: Progress) -> None:
        """Record a step."""
        self.latest[step.index] = step
        if step.preview is not None:
            self.previewed = step

    @property
    def fraction(self) -> float:
        """The share of all steps that have been made, from 0 to 1."""
        steps = sum(step.steps for step in self.latest.values())
        return sum(step.step for step in self.latest.values()) / steps if steps else 0.0


class RunningCalls:
    """The running calls, the oldest first."""

    def __init__(self) -> None:
        self._calls: dict[str, RunningCall] = {}

    @contextmanager
    def running(self, request_id: str) -> Iterator[RunningCall]:
        """List a call while the block runs. A second call with the id of a first is not listed."""
        call = RunningCall(request_id)
        self._calls.setdefault(request_id, call)
        try:
            yield call
        finally:
            if self._calls.get(request_id) is call:
                del self._calls[request_id]

    def oldest(self) -> RunningCall | None:
        """The call that /progress and /interrupt refer to."""
        return next(iter(self._calls.values()), None)

    async def progress(self, with_image: bool) -> Automatic1111Progress:
        """The body of /progress."""
        call = self.oldest()
        if call is None:
            return _progress(0.0, 0.0, _state(None, 0), None)
        spent, fraction = time.time() - call.start, call.fraction
        left = spent * (1 - fraction) / fraction if fraction else 0.0
        state = _state(call, len(self._calls))
        preview = call.previewed.preview if with_image and call.previewed else None
        image = None
        if preview is not None:
            image = base64_of(await asyncio.to_thread(encode, preview, "png"))
        return _progress(fraction, left, state, image)


def _progress(
    fraction: float, left: float, state: ProgressState, image: str | None
) -> Automatic1111Progress:
    return {
        "progress": fraction,
        "eta_relative": left,
        "state": state,
        "textinfo": None,
        "current_image": image,
    }


def _state(call: RunningCall | None, count: int) -> ProgressState:
    steps = list(call.latest.values()) if call else []
    start = time.strftime("%Y%m%d%H%M%S", time.localtime(call.start)) if call else "0"
    return {
        "skipped": False,
        "interrupted": False,
        "job": call.request_id if call else "",
        "job_count": count,
        "job_timestamp": start,
        "job_no": 0,
        "sampling_step": max((step.step for step in steps), default=0),
        "sampling_steps": max((step.steps for step in steps), default=0),
    }
