"""What batching can buy on this machine at most: the UNet alone, by rows.

In a process of its own, as the contenders. Prints one JSON document: milliseconds of a forward,
and the operators that took the most of it.

    python -m benchmarks.contenders.forward TAG [ROUNDS]
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from benchmarks.contenders.pipeline import load

ROWS = (2, 8, 16)


def inputs(unet: Any, rows: int) -> dict[str, Any]:
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.randn(rows, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, pooled),
            "time_ids": torch.full((rows, 6), 128.0),
        },
    }


def main(tag: str, rounds: int) -> dict[str, Any]:
    unet = load(tag).unet
    given = {rows: inputs(unet, rows) for rows in ROWS}
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for rows in ROWS:
                begin = time.perf_counter()
                unet(**given[rows])
                if turn:  # the first is the warm-up
                    times[rows].append(time.perf_counter() - begin)
        operators = {rows: shares(unet, given[rows]) for rows in (ROWS[0], ROWS[-1])}
    # The least: whatever else the machine does can only add to it.
    ms = {rows: round(min(times[rows]) * 1e3, 2) for rows in ROWS}
    return {"ms": ms, "operators": operators}


def shares(unet: Any, given: dict[str, Any]) -> dict[str, float]:
    """The operators that take the most of a forward, with their share of its time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        unet(**given)
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: -event.self_cpu_time_total)
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in events[:6]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)))
