"""The progress of a call as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Task
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.serving.results import Progress

KEEP_ALIVE_S = 10.0

Event = Progress | Answer | Exception | None


async def events_of(api: API, call: Call, task: Task) -> AsyncGenerator[Event]:
    """Run a call. Yields its progress, and finally its answer or its error.

    The first event is progress only if the engine has taken the call: a call that is refused has
    its error as its only event, so that it can be answered with the status of that error. Later,
    None is yielded if nothing has happened for `KEEP_ALIVE_S`. Closing it early ends the call.
    """
    loop = asyncio.get_running_loop()
    progress: asyncio.Queue[Progress | None] = asyncio.Queue()

    def on_progress(step: Progress) -> None:  # may come from the engine's thread
        loop.call_soon_threadsafe(progress.put_nowait, step)

    running = asyncio.create_task(api.run(call, task, on_progress))
    running.add_done_callback(lambda _: progress.put_nowait(None))
    silence_s = None  # nothing may be sent before it is known whether the call is refused
    try:
        while True:
            try:
                step = await asyncio.wait_for(progress.get(), silence_s)
                silence_s = KEEP_ALIVE_S
            except TimeoutError:
                yield None
                continue
            if step is None:
                break
            yield step
        yield outcome(running)
    finally:
        if not running.done():
            running.cancel()


def outcome(task: asyncio.Task[Answer]) -> Answer | Exception:
    """The answer or the error of a finished call."""
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception):
        raise error
    return error
