"""AUTOMATIC1111's samplers and schedulers → native samplers, by the table in `sampler_names`."""

from __future__ import annotations

from sdxl_bento.errors import InvalidInput
from sdxl_bento.sampler_names import A1111_SAMPLERS

_BY_NAME = {name.lower(): name for name in A1111_SAMPLERS}


def sampler_of(name: object, scheduler: object) -> str:
    """The native sampler. Raises InvalidInput if there is none: nothing is replaced silently."""
    known = _BY_NAME.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise InvalidInput("sampler_name", name, f"one of {', '.join(A1111_SAMPLERS)}")
    schedulers = A1111_SAMPLERS[known]
    ours = schedulers.get(scheduler.lower()) if isinstance(scheduler, str) else None
    if ours is None:
        allowed = f"one of {', '.join(schedulers)} with the sampler {known}"
        raise InvalidInput("scheduler", scheduler, allowed)
    return ours
