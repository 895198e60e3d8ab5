"""The calls of AUTOMATIC1111's clients that run in this process, and how far they are.

Its interface draws one picture at a time for one user, and /progress and /interrupt mean that one.
Here they mean the call that has been running for longest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.pictures.encode import encode
from sdxl_bento.protocols.http.answers import base64_of
from sdxl_bento.serving.results import Progress


@dataclass
class Job:
    """One call: the latest step of each of its pictures, and the latest preview."""

    request_id: str
    begun: float = field(default_factory=time.time)
    latest: dict[int, Progress] = field(default_factory=dict)
    shown: Progress | None = None

    def note(self, step: Progress) -> None:
        """Take note of a step."""
        self.latest[step.index] = step
        if step.preview is not None:
            self.shown = step

    @property
    def done(self) -> float:
        """Share of the steps that are made, from 0 to 1."""
        steps = sum(step.steps for step in self.latest.values())
        return sum(step.step for step in self.latest.values()) / steps if steps else 0.0


class Jobs:
    """All of them, the oldest first."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}

    @contextmanager
    def running(self, request_id: str) -> Iterator[Job]:
        """Keep a job here while it runs."""
        job = Job(request_id)
        self._running.setdefault(request_id, job)
        try:
            yield job
        finally:
            if self._running.get(request_id) is job:
                del self._running[request_id]

    def oldest(self) -> Job | None:
        """The job that /progress and /interrupt are about."""
        return next(iter(self._running.values()), None)

    async def progress(self, with_image: bool) -> dict[str, Any]:
        """The body of /progress."""
        job = self.oldest()
        if job is None:
            return {**_progress(0.0, 0.0, _state(None, 0)), "current_image": None}
        spent, done = time.time() - job.begun, job.done
        left = spent * (1 - done) / done if done else 0.0
        body = _progress(done, left, _state(job, len(self._running)))
        preview = job.shown.preview if with_image and job.shown else None
        image = None
        if preview is not None:
            png = await asyncio.to_thread(encode, preview, "png")
            image = base64_of(png)
        return {**body, "current_image": image}


def _progress(done: float, left: float, state: dict[str, Any]) -> dict[str, Any]:
    return {"progress": done, "eta_relative": left, "state": state, "textinfo": None}


def _state(job: Job | None, count: int) -> dict[str, Any]:
    steps = list(job.latest.values()) if job else []
    begun = time.strftime("%Y%m%d%H%M%S", time.localtime(job.begun)) if job else "0"
    return {
        "skipped": False,
        "interrupted": False,
        "job": job.request_id if job else "",
        "job_count": count,
        "job_timestamp": begun,
        "job_no": 0,
        "sampling_step": max((step.step for step in steps), default=0),
        "sampling_steps": max((step.steps for step in steps), default=0),
    }
