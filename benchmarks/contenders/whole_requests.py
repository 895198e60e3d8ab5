"""Contender (b): BentoML's adaptive batching over diffusers' pipeline.

Whole requests are batched: the next batch starts when the last has ended. One call of the pipeline
has one number of steps and one guidance scale, so a mixed batch takes one call for each.

    bentoml serve benchmarks.contenders.whole_requests:WholeRequests
"""

from __future__ import annotations

import base64
import os

import bentoml

from benchmarks.contenders.pipeline import Ask, draw, load


@bentoml.service(name="whole-requests", traffic={"timeout": 900, "max_concurrency": 1024})
class WholeRequests:
    def __init__(self) -> None:
        self.pipeline = load(os.environ["SDXL_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=900_000)  # type: ignore[untyped-decorator]
    def generate(self, asks: list[Ask]) -> list[str]:
        """PNG files in base64, in the order of `asks`."""
        alike: dict[tuple[int, float], list[int]] = {}
        for index, ask in enumerate(asks):
            alike.setdefault((ask.num_inference_steps, ask.guidance_scale), []).append(index)
        files = [""] * len(asks)
        for indices in alike.values():
            drawn = draw(self.pipeline, [asks[index] for index in indices])
            for index, png in zip(indices, drawn, strict=True):
                files[index] = base64.b64encode(png).decode("ascii")
        return files
