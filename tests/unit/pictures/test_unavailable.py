"""A store that is unreachable, hangs or is full: who waits, and how it comes back."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from sdxl_bento.config import Settings
from sdxl_bento.errors import ImageNotFound, StoreUnavailable
from sdxl_bento.pictures import breaker
from sdxl_bento.pictures.breaker import Breaker
from sdxl_bento.pictures.location import open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.pictures.reasons import Rarely, reason
from sdxl_bento.pictures.room import Room
from sdxl_bento.pictures.store import ImageStore
from sdxl_bento.pictures.threads import DaemonPool
from sdxl_bento.serving.metrics import metrics
from tests.unit.pictures.test_publish import generation


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return open_store(Settings(store=str(tmp_path / "store")))


def caused(error: Exception) -> StoreUnavailable:
    unavailable = StoreUnavailable()
    unavailable.__cause__ = error
    return unavailable


async def eventually(happened: Any) -> None:
    for _ in range(1000):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("hangs", [True, False], ids=["hanging", "unreachable"])
async def test_after_failures_nobody_waits_until_it_answers_again(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    hangs: bool,
) -> None:  # fmt: skip
    """The store is wrong for two calls; the others don't even ask. Then it comes back."""
    monkeypatch.setattr(breaker, "PROBE_EVERY_S", 0.02)
    pictures = Pictures(Settings(store_timeout_s=0.3), store, metrics())
    before = {each: sample("sdxl_store_writes_total", outcome=each) for each in
              ("stored", "failed", "skipped")}  # fmt: skip
    mended, asked = threading.Event(), []
    write = store._files.pipe_file

    def fail(path: str, data: bytes) -> None:
        if mended.is_set():
            return write(path, data)
        asked.append(path)
        if hangs:
            mended.wait(20)
        raise ConnectionError

    monkeypatch.setattr(store._files, "pipe_file", fail)
    for _ in range(breaker.FAILURES):
        (picture,) = await pictures.publish(generation(), None)
        assert picture.image_id is None
    assert sample("sdxl_store_available") == 0
    tried = [path for path in asked if ".check" not in path]
    for _ in range(5):
        (picture,) = await pictures.publish(generation(), None)
        assert picture.image_id is None
        assert picture.data
    assert [path for path in asked if ".check" not in path] == tried
    with pytest.raises(StoreUnavailable) as caught:
        await pictures.get("a" * 28)
    assert caught.value.retry_after_s > 0
    said = "no answer within 0.3 s" if hangs else "ConnectionError"
    assert f"could not be stored: {said}" in caplog.text
    assert f"the image store does not answer ({said})" in caplog.text
    mended.set()
    await eventually(lambda: sample("sdxl_store_available") == 1)
    (picture,) = await pictures.publish(generation(), None)
    assert picture.image_id is not None
    counted = {name: sample("sdxl_store_writes_total", outcome=name) - was
               for name, was in before.items()}  # fmt: skip
    assert counted == {"stored": 1, "failed": 2, "skipped": 5}
    pictures.close()


async def test_threads_that_hang_for_ever_are_replaced(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "PROBE_EVERY_S", 0.02)
    pictures = Pictures(Settings(store_timeout_s=5), store)
    never = threading.Event()
    hanging = [pictures.in_store(lambda _: never.wait(), 0.05) for _ in range(20)]
    await asyncio.gather(*hanging, return_exceptions=True)
    assert pictures._breaker is not None
    await eventually(lambda: not pictures._breaker.is_open)  # type: ignore[union-attr]
    assert await pictures.in_store(lambda _: 7, 5) == 7
    pictures.close()
    never.set()


@pytest.mark.parametrize(
    "error", [PermissionError("no"), FileNotFoundError("no"), OSError(errno.ENOSPC, "full")]
)
async def test_what_is_refused_at_once_is_asked_again(store: ImageStore, error: Exception) -> None:
    """Also, what is not there was answered."""
    pictures = Pictures(Settings(), store)

    def refuse(_: ImageStore) -> None:
        raise StoreUnavailable from error

    def absent(_: ImageStore) -> None:
        raise ImageNotFound("x")

    for work in (refuse, absent) * 3:
        with pytest.raises((StoreUnavailable, ImageNotFound)):
            await pictures.in_store(work, 5)
    assert await pictures.in_store(lambda _: 7, 5) == 7
    pictures.close()


@pytest.fixture
def tripped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaker]:
    monkeypatch.setattr(breaker, "PROBE_EVERY_S", 0.01)
    made = Breaker(lambda: time.sleep(0.05), within_s=0.0)
    for _ in range(breaker.FAILURES):
        made.failed(caused(OSError("gone")))
    yield made
    made.close()


def test_a_probe_that_is_late_has_failed(tripped: Breaker) -> None:
    time.sleep(0.2)
    assert tripped.is_open
    tripped.succeeded()
    assert not tripped.is_open


def test_only_failures_in_a_row_count() -> None:
    made = Breaker(lambda: None, within_s=1.0)
    for _ in range(5):
        made.failed(caused(OSError("gone")))
        made.succeeded()
        made.require()


def test_a_pool_that_hangs_keeps_no_process() -> None:
    """A process ends although its pool, unlike the standard library's, has work that hangs."""
    program = """
        import threading, time
        from sdxl_bento.pictures.threads import DaemonPool
        pool = DaemonPool(2, "p")
        pool.submit(threading.Event().wait)
        assert pool.submit(lambda: 3).result(20) == 3
        begin = time.monotonic()
        assert not pool.close(0.05)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_a_pool_that_is_closed_ends_its_work_and_takes_no_more() -> None:
    pool = DaemonPool(2, "p")
    futures = [pool.submit(time.sleep, 0.01) for _ in range(6)]
    assert pool.close(20)
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        pool.submit(print)


# A full disk


def disk_of(store: ImageStore, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """From now on, the store's files can have `most` bytes together."""
    write = store._files.pipe_file
    one_at_a_time = threading.Lock()

    def used() -> int:
        size = 0
        for entry in os.scandir(store._root):
            with suppress(FileNotFoundError):  # another thread has removed it
                size += entry.stat().st_size
        return size

    def on_a_small_disk(path: str, data: bytes) -> None:
        with one_at_a_time:
            if used() + len(data) > most:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, data)

    monkeypatch.setattr(store._files, "pipe_file", on_a_small_disk)


def test_a_full_disk_has_room_again(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the store is far below its bound, its oldest pictures go, so that all are taken."""
    store.put(b"x" * 1000, "png", {})
    disk_of(store, monkeypatch, 20_000)
    now = time.time()
    ids = []
    for number in range(40):
        store._clock = lambda second=number: now + second  # type: ignore[misc]
        ids.append(store.put(b"x" * 1000, "png", {}))
    kept = [image_id for image_id in ids if store._files.exists(f"{store._root}/{image_id}.json")]
    assert kept == ids[-len(kept) :]
    assert 8 <= len(kept) <= 16


def test_writers_that_take_each_others_room_all_get_some(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(19):
        store.put(b"x" * 1000, "png", {})
    disk_of(store, monkeypatch, 25_000)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: store.put(b"x" * 1000, "png", {}), range(100)))
    assert len(set(ids)) == 100


def test_pictures_do_not_go_in_vain(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have filled the disk: removing pictures one after the other would not help."""
    ids = [store.put(b"x" * 1000, "png", {}) for _ in range(32)]
    disk_of(store, monkeypatch, 0)
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            store.put(b"x" * 1000, "png", {})
    left = [each for each in ids if store._files.exists(f"{store._root}/{each}.json")]
    assert len(left) >= 22  # two rounds of an eighth


def test_room_that_another_thread_has_made_is_used() -> None:
    removed: list[int] = []

    def remove(size: int) -> bool:
        removed.append(size)
        return True

    room, tries = Room(remove), 0

    def write() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:  # and meanwhile, another has made room
            raise caused(OSError(errno.EDQUOT, "quota"))

    room.write(write, 10)
    assert (tries, removed) == (2, [])


def test_an_error_without_a_message_has_a_name() -> None:
    assert reason(caused(TimeoutError())) == "TimeoutError"
    assert reason(caused(OSError("a\n b"))) == "a b"


def test_a_warning_comes_rarely_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    warnings = Rarely(logging.getLogger("rare"), 30, clock=lambda: now)
    for _ in range(5):
        warnings.warn("%s fails", "it")
    now = 31
    warnings.warn("%s fails", "it")
    assert [each.getMessage() for each in caplog.records] == [
        "it fails",
        "it fails (and 4 more since the last such line)",
    ]
