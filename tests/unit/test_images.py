"""Encoding, decoding and the store."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from sdxl_bento import images
from sdxl_bento.config import Settings
from sdxl_bento.errors import ImageNotFound, InvalidInput
from sdxl_bento.images import Encoder, ImageStore, ImageTooLarge, decode, encode, open_store


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (40, 24), (200, 30, 30))
    image.paste((20, 40, 220), (10, 6, 30, 18))
    return image


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
def test_encoding_gives_the_picture_back(picture: Image.Image, name: str) -> None:
    data = encode(picture, name)  # type: ignore[arg-type]
    back = Image.open(io.BytesIO(data))
    assert back.format == name.upper()
    assert back.size == picture.size
    red, green, blue = back.convert("RGB").getpixel((20, 12))  # type: ignore[misc]
    assert abs(red - 20) < 25
    assert abs(green - 40) < 25
    assert abs(blue - 220) < 25


def test_png_is_exact_and_carries_text(picture: Image.Image) -> None:
    data = encode(picture, "png", text={"sdxl-bento": '{"prompt": "größe ☃"}'})
    back = Image.open(io.BytesIO(data))
    assert back.tobytes() == picture.tobytes()
    assert back.info["sdxl-bento"] == '{"prompt": "größe ☃"}'


def test_the_same_picture_gives_the_same_bytes(picture: Image.Image) -> None:
    for name in ("png", "webp", "jpeg"):
        assert encode(picture, name, text={"a": "b"}) == encode(picture, name, text={"a": "b"})


def test_level_and_quality_matter() -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    flat = Image.new("RGB", (256, 256), (9, 9, 9))
    assert len(encode(flat, "png", png_level=9)) < len(encode(flat, "png", png_level=0))
    assert len(encode(noise, "jpeg", quality=20)) < len(encode(noise, "jpeg", quality=95))
    assert len(encode(noise, "webp", quality=20)) < len(encode(noise, "webp", quality=95))


async def test_the_encoder_works_in_its_own_threads(picture: Image.Image) -> None:
    encoder = Encoder(png_level=1)
    try:
        assert await encoder.encode(picture, "png", 90, {}) == encode(picture, "png")
        names = [thread.name for thread in threading.enumerate()]
        assert any(name.startswith("sdxl-encode") for name in names)
    finally:
        encoder.close()


def test_decoding(picture: Image.Image) -> None:
    for name in ("png", "webp", "jpeg"):
        back = decode(encode(picture, name), 10_000)
        assert (back.mode, back.size) == ("RGB", (40, 24))


def test_decoding_turns_a_picture_upright(picture: Image.Image) -> None:
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    assert decode(out.getvalue(), 10_000).size == (24, 40)


def test_decoding_refuses_what_is_no_picture(picture: Image.Image) -> None:
    gif = io.BytesIO()
    picture.save(gif, "GIF")
    cut = encode(Image.effect_noise((64, 64), 80).convert("RGB"), "png")[:300]
    for data in (b"", b"nonsense", gif.getvalue(), cut):
        with pytest.raises(InvalidInput, match="a PNG, JPEG or WebP picture"):
            decode(data, 10_000)


def test_decoding_refuses_too_many_pixels(picture: Image.Image) -> None:
    with pytest.raises(ImageTooLarge, match="got '40x24', allowed: at most 959 pixels"):
        decode(encode(picture, "png"), 959)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[ImageStore]:
    url = f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "store")
    yield ImageStore(url, ttl_s=60, max_bytes=8000, clock=clock)
    if request.param == "memory":
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_stored_picture_comes_back(store: ImageStore) -> None:
    image_id = store.put(b"data", "webp", {"params": {"seed": 3}})
    found = store.get(image_id)
    assert (found.image_id, found.data, found.media_type) == (image_id, b"data", "image/webp")
    assert found.metadata == {"params": {"seed": 3}}


def test_ids_cannot_be_guessed(store: ImageStore) -> None:
    ids = {store.put(b"", "png", {}) for _ in range(50)}
    assert len(ids) == 50
    assert {len(image_id) for image_id in ids} == {22}


@pytest.mark.parametrize("bad", ["", "x", "../../etc/passwd", "a" * 22, "a" * 21 + "/", "ä" * 22])
def test_unknown_ids(store: ImageStore, bad: str) -> None:
    with pytest.raises(ImageNotFound):
        store.get(bad)


def test_a_picture_expires(store: ImageStore, clock: Clock) -> None:
    image_id = store.put(b"data", "png", {})
    clock.now += 60
    store.get(image_id)
    clock.now += 1
    with pytest.raises(ImageNotFound, match="60 seconds"):
        store.get(image_id)
    newer = store.put(b"data", "png", {})  # sweeps, since half a minute is over
    with pytest.raises(ImageNotFound) as caught:
        store.get(image_id)
    assert "seconds" not in str(caught.value)
    store.get(newer)


def test_the_oldest_go_when_it_is_full(store: ImageStore, clock: Clock) -> None:
    ids = []
    for _ in range(20):
        clock.now += 1
        ids.append(store.put(b"x" * 1000, "png", {}))
    kept = [image_id for image_id in ids if _has(store, image_id)]
    assert kept == ids[-7:]  # 8000 bytes less the eighth that may come before the next sweep


def test_what_is_being_read_stays(
    store: ImageStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = store.put(b"precious", "png", {})
    loads = json.loads

    def sweep_meanwhile(data: bytes) -> object:
        monkeypatch.setattr(images.json, "loads", loads)
        for _ in range(20):
            clock.now += 1
            store.put(b"x" * 1000, "png", {})
        return loads(data)

    monkeypatch.setattr(images.json, "loads", sweep_meanwhile)
    assert store.get(image_id).data == b"precious"
    store.put(b"x" * 1000, "png", {})
    assert not _has(store, image_id)


def test_stores_may_share_a_folder(tmp_path: Path) -> None:
    one = ImageStore(str(tmp_path), ttl_s=60, max_bytes=8000)
    other = ImageStore(str(tmp_path), ttl_s=60, max_bytes=8000)
    assert other.get(one.put(b"data", "png", {})).data == b"data"


def test_a_store_of_its_own_is_removed_at_the_end(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(images.tempfile, "tempdir", str(tmp_path))
    store = open_store(Settings())
    store.put(b"data", "png", {})
    assert list(tmp_path.rglob("*.bin"))
    store.close()
    assert not list(tmp_path.rglob("*.bin"))


def test_a_named_store_stays(tmp_path: Path) -> None:
    store = open_store(Settings(store_dir=tmp_path / "pictures"))
    image_id = store.put(b"data", "png", {})
    store.close()
    assert (tmp_path / "pictures" / f"{image_id}.bin").read_bytes() == b"data"


def _has(store: ImageStore, image_id: str) -> bool:
    try:
        store.get(image_id)
    except ImageNotFound:
        return False
    return True
