"""Drawn pictures as files: what is in them, what is kept beside them, what if the store fails."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_bento import __version__
from sdxl_bento.config import Settings
from sdxl_bento.errors import ImageNotFound, StoreUnavailable
from sdxl_bento.order import InputImage, Resolved
from sdxl_bento.pictures import publish, sweeping
from sdxl_bento.pictures.location import open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.pictures.store import ImageStore
from sdxl_bento.serving.results import GeneratedImage, Generation, Provenance, Timings
from tests.support.loaded_models import loaded, resolved

PROVENANCE = Provenance(
    "m:1", "0" * 64, "onnx-cpu", "fp32", "cpu", "2", (("vae_slicing", 1),), (("striped", "a"),)
)
KEY = "0123456789abcdef" * 4


def generation(
    order: Resolved | None = None, steps: tuple[int | None, ...] = (None,)
) -> Generation:
    """One picture for each of `steps`, 32 x 24 pixels."""
    order = order or resolved(loaded())
    images = [
        GeneratedImage(Image.new("RGB", (32, 24), "red"), order.params.seed + index, index, each)
        for index, each in enumerate(steps)
    ]
    return Generation("r-1", order, tuple(images), Timings(0, 0, 0, 0, 0, 0))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return open_store(Settings(store=str(tmp_path / "store")))


@pytest.fixture
async def pictures(store: ImageStore) -> AsyncIterator[Pictures]:
    opened = Pictures(Settings(), store)
    yield opened
    opened.close()


async def test_what_is_kept_beside_a_picture(pictures: Pictures) -> None:
    source = InputImage(Image.new("RGB", (8, 8)), "b" * 64, "earlier")
    order = Resolved("img2img", resolved(loaded(), strength=0.5).params, {"image": source})
    (picture,) = await pictures.publish(generation(order), PROVENANCE)
    kept = await pictures.describe(str(picture.image_id))
    assert kept["image_id"] == picture.image_id
    assert (kept["width"], kept["height"]) == (32, 24)  # as it was drawn
    assert (kept["task"], kept["request_id"]) == ("img2img", "r-1")
    assert kept["params"]["strength"] == 0.5
    assert kept["params"]["seed"] == 5
    assert kept["source"] == {"image_id": "earlier", "sha256": "b" * 64}
    assert kept["drawn_by"] == {
        "sdxl_bento": __version__, "model": "m:1", "artifact": "0" * 64, "backend": "onnx-cpu",
        "dtype": "fp32", "device": "cpu", "torch": "2", "options": {"vae_slicing": 1},
        "loras": {"striped": "a"},
    }  # fmt: skip
    stored = await pictures.get(str(picture.image_id))
    assert (stored.data, stored.media_type) == (picture.data, "image/png")


async def test_a_generated_picture_has_no_source(pictures: Pictures) -> None:
    (picture,) = await pictures.publish(generation(), None)
    kept = await pictures.describe(str(picture.image_id))
    assert kept["source"] is kept["drawn_by"] is None


async def test_each_picture_is_described_as_a_call_of_its_own(pictures: Pictures) -> None:
    order = resolved(loaded(), num_images=3, num_inference_steps=9)
    published = await pictures.publish(generation(order, (9, 7, None)), PROVENANCE)
    assert [(each.index, each.seed) for each in published] == [(0, 5), (1, 6), (2, 7)]
    for each, steps in zip(published, (9, 7, 9), strict=True):
        params = (await pictures.describe(str(each.image_id)))["params"]
        assert (params["seed"], params["num_images"]) == (each.seed, 1)
        assert params["num_inference_steps"] == steps
        text = Image.open(io.BytesIO(each.data)).info
        assert json.loads(text["sdxl-bento"]) == params
        assert f"Steps: {steps}, " in text["parameters"]
        assert (each.width, each.height, each.cached) == (32, 24, None)


@pytest.mark.parametrize("embed", [True, False])
async def test_parameters_are_written_into_the_file_if_wanted(embed: bool) -> None:
    pictures = Pictures(Settings(embed_metadata=embed), None)
    (picture,) = await pictures.publish(generation(), PROVENANCE)
    assert ("parameters" in Image.open(io.BytesIO(picture.data)).info) is embed
    pictures.close()


async def test_format_and_quality_are_the_orders() -> None:
    pictures = Pictures(Settings(png_level=0), None)
    sizes = []
    for quality in (10, 95):
        order = resolved(loaded(), output_format="webp", output_quality=quality)
        drawn = generation(order)
        noise = Image.effect_noise((32, 24), 90).convert("RGB")
        image = GeneratedImage(noise, 5, 0)
        drawn = Generation("r", drawn.order, (image,), drawn.timings)
        (picture,) = await pictures.publish(drawn, None)
        assert picture.output_format == "webp"
        assert Image.open(io.BytesIO(picture.data)).format == "WEBP"
        sizes.append(len(picture.data))
    assert sizes[0] < sizes[1]
    (plain,) = await pictures.publish(generation(), None)
    assert len(plain.data) > 32 * 24 * 3  # not compressed
    pictures.close()


async def test_only_pictures_with_a_key_can_be_found_by_it(
    pictures: Pictures, store: ImageStore
) -> None:
    order = resolved(loaded(), num_images=2)
    published = await pictures.publish(generation(order, (None, None)), None, {1: KEY})
    assert [picture.cached for picture in published] == [False, False]
    found = store.get_result(KEY, "png")
    assert found is not None
    assert found.image_id == published[1].image_id
    (other,) = await pictures.publish(generation(), None, {})
    assert other.cached is False


async def test_without_a_store() -> None:
    pictures = Pictures(Settings(), None)
    (picture,) = await pictures.publish(generation(), PROVENANCE)
    assert picture.image_id is None
    assert picture.data.startswith(b"\x89PNG")
    for look_up in (pictures.get, pictures.describe):
        with pytest.raises(StoreUnavailable):
            await look_up("a" * 22)
    pictures.close()


async def test_unknown_ids(pictures: Pictures) -> None:
    for look_up in (pictures.get, pictures.describe):
        with pytest.raises(ImageNotFound):
            await look_up("a" * 22)


async def test_a_store_that_fails_loses_no_picture(
    pictures: Pictures, store: ImageStore, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*args: Any) -> str:
        raise StoreUnavailable from OSError("the disk is full")

    for name in ("put", "get", "describe"):
        monkeypatch.setattr(store, name, fail)
    (picture,) = await pictures.publish(generation(), None, {0: KEY})
    assert picture.image_id is None
    assert picture.data
    assert "request r-1: a picture could not be stored: the disk is full" in caplog.text
    for look_up in (pictures.get, pictures.describe):
        with pytest.raises(StoreUnavailable):
            await look_up("a" * 22)
    assert "the image store does not answer: the disk is full" in caplog.text


async def test_a_store_that_hangs_is_given_up(
    pictures: Pictures, store: ImageStore, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    release = threading.Event()
    for name in ("put", "get"):
        monkeypatch.setattr(store, name, lambda *_: release.wait(20))
    pictures.timeout_s = 0.02
    monkeypatch.setattr("sdxl_bento.pictures.publish._FETCH_S", 0.02)
    (picture,) = await pictures.publish(generation(), None)
    assert picture.image_id is None
    assert "could not be stored: no answer within 0.02 s" in caplog.text
    with pytest.raises(StoreUnavailable):
        await pictures.get("a" * 22)
    release.set()


def test_the_times_that_the_guide_promises() -> None:
    text = (Path(__file__).parents[3] / "docs/guides/images.md").read_text()
    assert "does not take it within `SDXL_STORE_TIMEOUT_S` (2) seconds" in text
    assert Settings().store_timeout_s == 2
    assert "the picture itself ten seconds later" in text
    assert sweeping.GRACE_S == 10
    assert "cannot be answered within ten seconds" in text
    assert publish._FETCH_S == 10


async def test_a_bug_in_the_store_is_not_taken_for_a_failure(
    pictures: Pictures, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*args: Any) -> str:
        raise KeyError("oops")

    monkeypatch.setattr(store, "put", bug)
    with pytest.raises(KeyError):
        await pictures.publish(generation(), None)


async def test_eight_slow_reads_are_answered_together(
    pictures: Pictures, store: ImageStore
) -> None:
    """And none of them in the threads that encode."""
    barrier = threading.Barrier(8)
    names = set()

    def wait(_: ImageStore) -> int:
        names.add(threading.current_thread().name.rpartition("_")[0])
        return barrier.wait(20)

    places = await asyncio.gather(*(pictures.in_store(wait, 20) for _ in range(8)))
    assert sorted(places) == list(range(8))
    assert names == {"sdxl-store"}


async def test_closing_waits_for_what_is_under_way_and_ends_the_sweeper(store: ImageStore) -> None:
    pictures = Pictures(Settings(), store)
    sweeper = store._sweeper
    assert sweeper.is_alive()
    ended = []

    def slow(_: ImageStore) -> None:
        time.sleep(0.1)
        ended.append(True)

    working = asyncio.ensure_future(pictures.in_store(slow, 20))
    await asyncio.sleep(0.02)
    await asyncio.to_thread(pictures.close)
    assert ended == [True]
    await working
    assert not sweeper.is_alive()
