"""Several pictures of one HTTP call, each a request of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sdxl_bento.drawing import Answer
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call


async def draw_all(api: API, calls: Sequence[Call]) -> list[Answer]:
    """Run the calls at once, so that they share batches. Answers come in the calls' order.

    These protocols have no place for the error of one instance: the first that fails is raised,
    and the others are cancelled.
    """

    tasks = [asyncio.create_task(api.run(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def most_instances(api: API) -> int:
    """More than these would find the queue full however idle the server is."""
    return api.settings.max_running + api.settings.max_queue
