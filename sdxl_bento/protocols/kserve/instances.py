"""Several instances of one HTTP call, each of which is a call of its own for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sdxl_bento.drawing import Answer
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call


async def draw_all(api: API, calls: Sequence[Call]) -> list[Answer]:
    """Run the calls at the same time, so that they share batches. Returns answers in their order.

    These protocols cannot express the error of one instance. The first error is raised, and the
    other calls are cancelled.
    """
    tasks = [asyncio.create_task(api.run(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def max_instances(api: API) -> int:
    """The most instances of one call: an idle server could not take more into its queue."""
    return api.settings.max_running + api.settings.max_queue
