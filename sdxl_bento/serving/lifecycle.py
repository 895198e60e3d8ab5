"""The start of a worker process, and what it tells while it runs."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
from typing import TYPE_CHECKING

from sdxl_bento.serving.gpu import GPU, gpus_of

if TYPE_CHECKING:
    from sdxl_bento.serving.generator import Generator
    from sdxl_bento.serving.metrics import Metrics

logger = logging.getLogger(f"bentoml.{__name__}")
_EXAMPLE_PROMPT = "a red circle on a blue background"


async def announce(generator: Generator, url: str | None) -> None:
    """Wait for the engine, then print how to get a first picture, or log why it failed to start.

    `url` is the server's address; None in the workers that leave the printing to another one.
    """
    while generator.state in ("new", "loading"):  # noqa: ASYNC110  changed by another thread
        await asyncio.sleep(0.05)
    if generator.state == "dead":
        logger.error("the engine could not start: %s", generator.state_reason)
    elif generator.state == "ready" and url is not None:
        sys.stdout.write(welcome(url))
        sys.stdout.flush()


async def report_load(generator: Generator, metrics: Metrics, every_s: float = 1.0) -> None:
    """Keep the metrics up to date until cancelled.

    Prometheus cannot call a function for a gauge's value if several processes share the gauge, so
    the values are set every `every_s` seconds.
    """
    started = False
    gpus: list[GPU] = []
    while True:
        metrics.load(generator.activity.stats())
        metrics.units(generator.activity.units())
        if not started and generator.state == "ready":
            models = generator.models.summaries()
            metrics.started(models)
            gpus = await asyncio.to_thread(gpus_of, {model.device for model in models})
            started = True
        for gpu in gpus:
            metrics.gpu(await asyncio.to_thread(gpu.usage))
        await asyncio.sleep(every_s)


def welcome(url: str) -> str:
    """What is printed at the end of the start: the address, and a command that saves a picture."""
    body = shlex.quote(json.dumps({"prompt": _EXAMPLE_PROMPT}))
    curl = f"curl -s {url}/generate -H 'Content-Type: application/json' -d {body} -o picture.png"
    return f"\nReady at {url} (the API is at {url}/docs). A first picture:\n\n  {curl}\n\n"
