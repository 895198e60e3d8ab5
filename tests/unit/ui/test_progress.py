"""How far a call of the page is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from PIL import Image

from sdxl_bento.serving.results import Progress
from sdxl_bento.ui.progress import PageCall, Snapshot, Visitor


def drawing(pictures: int, positions: dict[tuple[str, int], int] | None = None) -> PageCall:
    places = positions or {}
    calls = SimpleNamespace(position=lambda request, index: places[request, index])
    api: Any = SimpleNamespace(generator=SimpleNamespace(calls=calls))
    call: Any = SimpleNamespace(request_id="ui-1")
    return PageCall(api, call, Visitor(), pictures)


async def test_nothing_has_happened_yet() -> None:
    assert await drawing(2)._snapshot() == Snapshot("", 0, 0, 0, 0.0, (None, None))


async def test_the_picture_that_is_furthest_behind_counts() -> None:
    both = drawing(2)
    both._note(Progress("ui-1", 0, "base", 6, 10))
    both._note(Progress("ui-1", 1, "base", 2, 10))
    assert await both._snapshot() == Snapshot("base", 2, 10, 0, 0.4, (None, None))
    both._note(Progress("ui-1", 1, "decode", 10, 10))
    assert await both._snapshot() == Snapshot("base", 6, 10, 0, 0.8, (None, None))


async def test_a_place_in_the_queue_is_asked_for_anew() -> None:
    waiting = drawing(2, {("ui-1", 1): 3})
    waiting._note(Progress("ui-1", 0, "base", 1, 10))
    waiting._note(Progress("ui-1", 1, "queued", 0, 0, position=9))
    assert await waiting._snapshot() == Snapshot("", 0, 0, 3, 0.1, (None, None))


async def test_previews_stay_until_there_are_newer_ones() -> None:
    one = drawing(2)
    one._note(Progress("ui-1", 1, "base", 1, 4, preview=Image.new("RGB", (8, 8), "red")))
    none, red = (await one._snapshot()).previews
    assert none is None
    assert red is not None
    assert red.startswith(b"\xff\xd8")
    one._note(Progress("ui-1", 1, "base", 2, 4))
    assert (await one._snapshot()).previews == (None, red)
    one._note(Progress("ui-1", 1, "base", 3, 4, preview=Image.new("RGB", (8, 8), "blue")))
    assert (await one._snapshot()).previews[1] not in (None, red)


async def test_who_ends_a_call_leaves_it() -> None:
    ended = drawing(1)
    waiting = asyncio.create_task(ended.visitor.receive())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not waiting.done()
    ended.end()
    assert ended.stopped
    assert await waiting == {"type": "http.disconnect"}
