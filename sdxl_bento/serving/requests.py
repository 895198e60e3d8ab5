"""From a planned job to the engine's request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdxl_bento.engine.request import Request

if TYPE_CHECKING:
    from sdxl_bento.diffusion.plan import Job


def to_request(request_id: str, job: Job, now: float, slo_ms: float | None) -> Request:
    """The engine's request for a job.

    Args:
        request_id: of the request.
        job: what is to be drawn.
        now: its arrival, in seconds of the engine's clock.
        slo_ms: its deadline in milliseconds after its arrival; None if it has none.
    """
    params = job.params
    return Request(
        id=request_id,
        model=params.model,
        height=params.height,
        width=params.width,
        phases=job.phases(),
        payload=job,
        arrival=now,
        deadline=None if slo_ms is None else now + slo_ms / 1e3,
        priority=params.priority,
    )
