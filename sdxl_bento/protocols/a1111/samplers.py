"""AUTOMATIC1111's names of samplers and schedulers → ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sdxl_bento.errors import InvalidInput

AUTOMATIC = "automatic"
# Name → its scheduler → our sampler. What `automatic` is, each of its samplers says for itself.
# The names with a schedule in them are those of before version 1.9.
SAMPLERS: Mapping[str, Mapping[str, str]] = {
    "Euler": {AUTOMATIC: "euler", "uniform": "euler"},
    "Euler a": {AUTOMATIC: "euler_a", "uniform": "euler_a"},
    "DPM++ 2M": {"karras": "dpmpp_2m_karras", AUTOMATIC: "dpmpp_2m_karras", "uniform": "dpmpp_2m"},
    "DPM++ 2M SDE": {
        "exponential": "dpmpp_2m_sde_exponential",
        AUTOMATIC: "dpmpp_2m_sde_exponential",
        "karras": "dpmpp_2m_sde_karras",
        "uniform": "dpmpp_2m_sde",
    },
    "DPM++ 2M Karras": {"karras": "dpmpp_2m_karras", AUTOMATIC: "dpmpp_2m_karras"},
    "DPM++ 2M SDE Karras": {"karras": "dpmpp_2m_sde_karras", AUTOMATIC: "dpmpp_2m_sde_karras"},
    "DPM++ 2M SDE Exponential": {
        "exponential": "dpmpp_2m_sde_exponential",
        AUTOMATIC: "dpmpp_2m_sde_exponential",
    },
    "DDIM": {AUTOMATIC: "ddim", "uniform": "ddim"},
    "LCM": {AUTOMATIC: "lcm", "uniform": "lcm"},
    "TCD": {AUTOMATIC: "tcd", "uniform": "tcd"},
}
SCHEDULERS = (AUTOMATIC, "uniform", "karras", "exponential")
_BY_NAME = {name.lower(): name for name in SAMPLERS}


def sampler_of(name: object, scheduler: object) -> str:
    """Our sampler. Raises InvalidInput for what there is none for: nothing is replaced silently."""
    known = _BY_NAME.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise InvalidInput("sampler_name", name, f"one of {', '.join(SAMPLERS)}")
    schedulers = SAMPLERS[known]
    ours = schedulers.get(scheduler.lower()) if isinstance(scheduler, str) else None
    if ours is None:
        allowed = f"one of {', '.join(schedulers)} with the sampler {known}"
        raise InvalidInput("scheduler", scheduler, allowed)
    return ours


def name_of(sampler: str | None) -> tuple[str, str]:
    """AUTOMATIC1111's sampler and scheduler for one of ours, the first in the table."""
    for name, schedulers in SAMPLERS.items():
        for scheduler, ours in schedulers.items():
            if ours == sampler:
                return name, scheduler
    return str(sampler), AUTOMATIC


def names(available: Collection[str]) -> list[str]:
    """Those of its samplers that this server has."""
    return [name for name, by in SAMPLERS.items() if not set(by.values()).isdisjoint(available)]
