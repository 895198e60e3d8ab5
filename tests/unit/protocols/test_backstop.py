"""The time limit around all requests."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from sdxl_bento.protocols.http.backstop import Backstop

HTTP: Any = {"type": "http", "method": "GET", "path": "/", "headers": []}


async def statuses(app: Any, seconds: float) -> list[int]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Backstop(app, seconds)(HTTP, send, send)
    return [each["status"] for each in sent if "status" in each]


async def test_it_answers_when_the_time_is_over() -> None:
    ended: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    assert await statuses(slow, 0.01) == [504]
    await asyncio.sleep(0)
    assert ended == ["cancelled"]


async def test_an_answer_that_has_begun_may_take_longer() -> None:
    async def begins(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    assert await statuses(begins, 0.01) == [200]


async def test_an_exception_comes_through_at_once() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        await asyncio.wait_for(statuses(fails, 600), 5)


async def test_nothing_of_a_request_is_kept() -> None:
    class Kept:
        pass

    kept: list[weakref.ref[Kept]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = Kept()
        kept.append(weakref.ref(body))
        await PlainTextResponse("ok")(scope, receive, send)

    timers = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
    for _ in range(300):
        assert await statuses(app, 600) == [200]
    gc.collect()
    assert all(each() is None for each in kept)
    assert len(asyncio.get_running_loop()._scheduled) < timers + 250  # type: ignore[attr-defined]
