"""When the store is swept, and what a sweep removes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.pictures import sweeping
from sdxl_bento.pictures.listing import PictureFiles, by_id, superfluous
from sdxl_bento.pictures.names import (
    created_at,
    is_id,
    is_result,
    lifetime_of,
    new_id,
    parse_file_name,
)
from sdxl_bento.pictures.sweeping import Sweeper

KEY = "0123456789abcdef" * 4


def id_at(second: int) -> str:
    return new_id(second, 60)


# Names


def test_an_id_tells_when_it_was_made() -> None:
    for second in (0, 1, 1_000_000, 1_900_000_000, 2**32 - 1):
        image_id = new_id(second + 0.9, 60)
        assert created_at(image_id) == second
        assert is_id(image_id)
        assert len(image_id) == 28


def test_an_id_is_never_an_option() -> None:
    """The first six bits of the time stand for a dash only from the year 2101 on."""
    for second in range(0, 0xF800_0000, 2**24):
        assert not new_id(second, 60).startswith("-")


def test_an_id_tells_for_how_long_its_picture_is_kept() -> None:
    for seconds, told in ((0.2, 1), (60, 60), (60.5, 61), (3600, 3600), (1e12, 2**32 - 1)):
        assert lifetime_of(new_id(5, seconds), otherwise_s=7) == told
    assert lifetime_of("a" * 22, otherwise_s=7) == 7  # of an earlier version
    assert created_at("awFg2-qBFNRlFlu89xv67Q") == 1795252443


def test_a_hundred_and_four_bits_are_random() -> None:
    tails = {base64.urlsafe_b64decode(new_id(5, 60))[8:] for _ in range(100)}
    assert len(tails) == 100
    assert {len(tail) for tail in tails} == {13}
    for place in range(13):
        assert len({tail[place] for tail in tails}) > 20


@pytest.mark.parametrize(
    "text", ["", "a" * 21, "a" * 23, "a" * 27, "a" * 29, "a" * 21 + "+", "a" * 28 + "\n"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_the_names_of_pictures() -> None:
    image_id = "a" * 28
    for suffix in ("png", "webp", "jpeg", "json"):
        assert parse_file_name(f"{image_id}.{suffix}") == (image_id, suffix)
    for name in (image_id, f"{image_id}.txt", f"x{image_id}.png", f"{image_id}.png.tmp", ".json"):
        assert parse_file_name(name) is None


def test_the_paths_of_results() -> None:
    image_id = "a" * 28
    assert is_result(f"/store/results/{KEY}/{image_id}")
    for path in (
        f"/store/other/{KEY}/{image_id}", f"/store/results/{KEY}/mine",
        f"/store/results/readme/{image_id}", f"/store/results/{KEY.upper()}/{image_id}",
    ):  # fmt: skip
        assert not is_result(path)


# Listings


def test_a_listing_by_id() -> None:
    one, two = id_at(1), id_at(2)
    listing: list[dict[str, Any]] = [
        {"name": f"bucket/{one}.png", "size": 100},
        {"name": f"bucket/{two}.json", "size": 3},
        {"name": f"bucket/{one}.json", "size": 20},
        {"name": f"bucket/{two}.webp", "size": None},
        {"name": "bucket/mine.png", "size": 5000},
        {"name": f"bucket/{one}.jpeg", "size": 7, "type": "directory"},
    ]
    assert by_id(listing) == {
        one: PictureFiles([f"bucket/{one}.json"], [f"bucket/{one}.png"], 120),
        two: PictureFiles([f"bucket/{two}.json"], [f"bucket/{two}.webp"], 3),
    }


def evicted(target: int, *sizes: int, expired_until: int = -1) -> list[int]:
    """Which of some pictures go, by the second in which each was made."""
    ids = {id_at(second): PictureFiles(size=size) for second, size in enumerate(sizes)}
    backwards = dict(reversed(ids.items()))
    gone = superfluous(backwards, target, lambda each: created_at(each) <= expired_until)
    return sorted(map(created_at, gone))


def test_the_oldest_go_until_there_is_room() -> None:
    assert evicted(100, 50, 50) == []
    assert evicted(99, 50, 50) == [0]
    assert evicted(50, 50, 50) == [0]
    assert evicted(49, 50, 50) == [0, 1]
    assert evicted(100, 10, 20, 90) == [0, 1]


def test_the_expired_go_even_if_there_is_room() -> None:
    assert evicted(1000, 50, 50, 50, expired_until=1) == [0, 1]
    assert evicted(60, 50, 50, 50, expired_until=0) == [0, 1]


# The thread


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Swept:
    """Counts sweeps, and lets a test wait for the next."""

    def __init__(self) -> None:
        self.grace_s: list[float] = []
        self.error: Exception | None = None
        self.done = threading.Semaphore(0)

    def __call__(self, grace_s: float) -> None:
        self.grace_s.append(grace_s)
        self.done.release()
        if self.error is not None:
            raise self.error

    def comes(self, within_s: float = 10.0) -> bool:
        return self.done.acquire(timeout=within_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def swept() -> Swept:
    return Swept()


@pytest.fixture
def sweeper(swept: Swept, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeper]:
    monkeypatch.setattr(sweeping, "_CHECK_EVERY_S", 0.005)
    thread = Sweeper(swept, after_bytes=100, after_s=60.0, clock=clock)
    yield thread
    thread.close()
    assert not thread.is_alive()


def test_it_sweeps_at_the_start_and_then_rests(sweeper: Sweeper, swept: Swept) -> None:
    sweeper.start()
    assert swept.comes()
    assert not swept.comes(within_s=0.05)
    assert swept.grace_s == [sweeping.GRACE_S]


def test_it_sweeps_as_time_passes(sweeper: Sweeper, swept: Swept, clock: Clock) -> None:
    sweeper.start()
    assert swept.comes()
    clock.now = 60.0
    assert not swept.comes(within_s=0.05)
    clock.now = 60.1
    assert swept.comes()
    assert not swept.comes(within_s=0.05)


def test_it_sweeps_after_a_while_if_anything_was_written(sweeper: Sweeper, swept: Swept) -> None:
    sweeper.start()
    assert swept.comes()
    sweeper.wrote(1)
    assert swept.comes()
    sweeper.reset()


def test_it_sweeps_at_once_after_much_was_written(
    sweeper: Sweeper, swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_CHECK_EVERY_S", 3600)
    sweeper.start()
    assert swept.comes()
    sweeper.wrote(60)
    sweeper.wrote(39)
    assert not swept.comes(within_s=0.05)
    sweeper.wrote(1)
    assert swept.comes()
    sweeper.reset()
    sweeper.wrote(99)
    assert not swept.comes(within_s=0.05)


def test_a_store_that_fails_is_swept_again(
    sweeper: Sweeper, swept: Swept, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    swept.error = StoreUnavailable()
    swept.error.__cause__ = OSError("gone")
    sweeper.start()
    assert swept.comes()
    clock.now = 61.0
    assert swept.comes()
    assert "the image store could not be swept: gone" in caplog.text


def test_closing_ends_a_wait_at_once(sweeper: Sweeper) -> None:
    assert not sweeper.wait(0.001)
    sweeper.close()  # it was never started
    assert sweeper.wait(60)
