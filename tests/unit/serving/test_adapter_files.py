"""When adapters' files are looked at again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from typing import Any

import pytest

from sdxl_bento.serving import adapter_files
from sdxl_bento.serving.adapter_files import AdapterFiles


class Pool:
    """Counts the looks, each of which may have to wait."""

    def __init__(self, *names: str) -> None:
        self.known = list(names)
        self.old: set[str] = set()
        self.looks = 0
        self.go = threading.Event()
        self.go.set()

    def names(self) -> list[str]:
        return self.known

    def outdated(self, names: Collection[str]) -> bool:
        return bool(self.old & set(names))

    def rescan(self) -> None:
        assert self.go.wait(10)
        self.looks += 1


def files(*pools: Any) -> AdapterFiles:
    return AdapterFiles(lambda: pools)


async def test_unknown_and_changed_names_are_looked_for() -> None:
    pool = Pool("a", "b")
    here = files(pool)
    await here.check(["a", "b"])
    await here.check([])
    assert pool.looks == 0
    await here.check(["a", "nobody"])
    assert pool.looks == 1
    pool.old = {"b"}
    await here.check(["a"])
    assert pool.looks == 1
    await here.check(["b"])
    assert pool.looks == 2


async def test_a_name_may_be_another_models() -> None:
    first, second = Pool("a"), Pool("b")
    await files(first, second).check(["a", "b"])
    assert first.looks == second.looks == 0


async def test_one_look_serves_all_who_wait() -> None:
    pool = Pool()
    pool.go.clear()
    here = files(pool)
    waiting = [asyncio.create_task(here.check([f"nobody {i}"])) for i in range(500)]
    await asyncio.sleep(0.1)
    pool.go.set()
    await asyncio.gather(*waiting)
    assert pool.looks < 50, "one that had begun before the last callers came, and the next one"


async def test_a_disk_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adapter_files, "PATIENCE_S", 0.05)
    monkeypatch.setattr(adapter_files, "MOST_REST_S", 0)
    pool = Pool("a")
    pool.go.clear()
    here = files(pool)
    await here.look()
    assert "has not answered" in caplog.text
    await here.check(["a"])
    pool.go.set()
    monkeypatch.setattr(adapter_files, "PATIENCE_S", 10)
    await here.look()
    assert pool.looks == 2
