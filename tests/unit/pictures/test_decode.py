"""Uploaded files of every kind: what becomes of their pixels, and that broken ones are refused."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image, ImageOps

from sdxl_bento.errors import InvalidInput
from sdxl_bento.pictures.decode import ImageTooLarge, check, decode
from sdxl_bento.pictures.encode import encode
from sdxl_bento.pictures.headers import MOST_CHUNKS, read_header
from tests.support.odd_pictures import (
    MAX_PIXELS,
    chunk,
    many_scans,
    mutated,
    outcome,
    outcomes,
    png,
    samples,
    saved,
)

WHITE = (255, 255, 255)
SAMPLES = samples()


def pixels(data: bytes) -> list[Any]:
    """The pixels of the first row."""
    image = decode(data, MAX_PIXELS)
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]


def rows(*values: int, depth: int = 8) -> bytes:
    """One row of a PNG, without a filter."""
    if depth < 8:
        bits = "".join(f"{value:0{depth}b}" for value in values)
        bits += "0" * (-len(bits) % 8)
        return b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return b"\0" + b"".join(value.to_bytes(depth // 8, "big") for value in values)


def key(*values: int) -> bytes:
    """The chunk with the colour that stands for a transparent pixel."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth(depth: int) -> None:
    """From black to white, and the transparent value is white whichever it is."""
    top = 2**depth - 1
    values = (0, top // 3, top // 2, top)
    expected = grey(*(round(value * 255 / top) for value in values))
    sent = rows(*values, depth=depth)
    assert pixels(png(4, 1, depth, 0, sent)) == expected
    for clear in values:
        some = [WHITE if each == clear else grey(round(each * 255 / top))[0] for each in values]
        assert pixels(png(4, 1, depth, 0, sent, key(clear))) == some


def test_a_grey_ramp_of_16_bits() -> None:
    values = range(0, 65536, 97)
    expected = grey(*(round(value / 257) for value in values))
    assert pixels(png(len(values), 1, 16, 0, rows(*values, depth=16))) == expected


def test_transparent_pixels_are_white_in_every_mode() -> None:
    """Wholly transparent: white, whatever colour they hide. By half: half of it."""
    assert pixels(png(3, 1, 8, 6, rows(9, 9, 9, 0, 200, 0, 0, 255, 0, 0, 0, 128))) == [
        WHITE,
        (200, 0, 0),
        (127, 127, 127),
    ]
    assert pixels(png(3, 1, 8, 4, rows(9, 0, 9, 255, 0, 128))) == grey(255, 9, 127)
    wide = rows(0x0900, 0, 0x09FF, 0xFFFF, depth=16)
    assert pixels(png(2, 1, 16, 4, wide)) == grey(255, 9)
    wide = rows(0x0900, 9, 9, 0, 0x09FF, 0, 0, 0xFFFF, depth=16)
    assert pixels(png(2, 1, 16, 6, wide)) == [WHITE, (9, 0, 0)]
    rgb = rows(1, 2, 3, 1, 2, 4)
    assert pixels(png(2, 1, 8, 2, rgb, key(1, 2, 3))) == [WHITE, (1, 2, 4)]
    wide = rows(0x0101, 0x0202, 0x0303, 0x0101, 0x0202, 0x0403, depth=16)
    assert pixels(png(2, 1, 16, 2, wide, key(0x0101, 0x0202, 0x0303))) == [WHITE, (1, 2, 4)]
    palette = chunk(b"PLTE", bytes((0, 0, 0, 200, 0, 0, 0, 0, 0)))
    some = palette + chunk(b"tRNS", bytes((0, 255, 128)))
    assert pixels(png(3, 1, 8, 3, rows(0, 1, 2), some)) == [WHITE, (200, 0, 0), (127, 127, 127)]
    one = palette + chunk(b"tRNS", bytes((255, 0)))
    assert pixels(png(3, 1, 8, 3, rows(0, 1, 2), one)) == [(0, 0, 0), WHITE, (0, 0, 0)]
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert pixels(saved(clear, "WEBP", lossless=True, exact=True)) == [WHITE] * 8


def test_opaque_pictures_are_as_pillow_converts_them() -> None:
    for name in ("png-p2", "jpeg-l", "jpeg-cmyk", "webp", "webp-lossless", "jpeg-progressive"):
        image = Image.open(io.BytesIO(SAMPLES[name]))
        expected = ImageOps.exif_transpose(image).convert("RGB")
        assert decode(SAMPLES[name], MAX_PIXELS).tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(kind: str, orientation: int) -> None:
    image = Image.open(io.BytesIO(SAMPLES["webp"])).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data, MAX_PIXELS).tobytes() == expected.tobytes()
    assert decode(data, MAX_PIXELS).size == expected.size


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of such data
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08",
        # The orientation as text, as a fraction with nothing below, in a place that is not there.
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02six\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x04\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Exif\0\0XX\0*\0\0\0\x08",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ],
)
def test_odd_exif_data_does_not_matter(exif: bytes) -> None:
    image = Image.new("RGB", (8, 4), (9, 9, 9))
    for kind in ("PNG", "JPEG", "WEBP"):
        assert decode(saved(image, kind, exif=exif), MAX_PIXELS).size == (8, 4)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_follows_a_picture_does_not_matter(name: str) -> None:
    """Some programs leave the end of an older, longer file, or put a film behind the picture."""
    for more in (b"\0" * (1 << 20), b"\xff\xda" * 999, SAMPLES["png"] * 99, SAMPLES["jpeg"] * 99):
        longer = decode(SAMPLES[name] + more, MAX_PIXELS)
        assert longer.tobytes() == decode(SAMPLES[name], MAX_PIXELS).tobytes()


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    options = {"save_all": True, "append_images": frames[1:], "duration": 100}
    for kind in ("PNG", "WEBP"):
        data = saved(frames[0], kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
        assert pixels(data) == [(200, 0, 0)] * 8


def canvas(width: int, height: int) -> bytes:
    """An extended WebP whose header promises a picture of this size."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int, scans: int = 1) -> bytes:
    """The markers of a JPEG without anything to decode."""
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC2, 11, 8, height, width, 1) + b"\1\x11\0"
    scan = b"\xff\xda\0\x08\1\1\0\0?\0" + b"\0" * 4
    return b"\xff\xd8\xff\xe0\0\x04ab" + frame + scan * scans + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        png(50_000, 50_000),
        png(2**31 - 1, 2**31 - 1),
        png(1, MAX_PIXELS + 1),
        canvas(16_383, 16_383),
        canvas(1 << 24, 1 << 24),
        b"RIFF\x10\0\0\0WEBPVP8L\5\0\0\0\x2f\xff\xff\xff\x0f",
        jpeg(65_535, 65_535),
    ],
)
def test_too_many_pixels_are_refused_before_decoding(data: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageTooLarge, match=f"at most {MAX_PIXELS} pixels") as caught:
        decode(data, MAX_PIXELS, "mask")
    assert caught.value.field == "mask"


def test_the_largest_picture_is_decoded() -> None:
    data = encode(Image.new("RGB", (40, 24)), "png")
    assert decode(data, 960).size == (40, 24)
    with pytest.raises(ImageTooLarge, match="got '40x24', allowed: at most 959 pixels"):
        decode(data, 959)


def test_scans_are_counted_before_decoding(monkeypatch: Any) -> None:
    """The work is that of all scans: a hundred of a small picture, twenty of the largest."""
    assert check(SAMPLES["jpeg"], MAX_PIXELS).scans == 1
    assert 5 < check(SAMPLES["jpeg-progressive"], MAX_PIXELS).scans < 20
    assert decode(many_scans(100), MAX_PIXELS).size == (24, 16)
    assert read_header(many_scans(3000)).scans == 3000  # type: ignore[union-attr]
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageTooLarge, match=r"24x16 with 3000 scans.*at most 100 scans"):
        decode(many_scans(3000), MAX_PIXELS)
    check(jpeg(1024, 1024, 20), MAX_PIXELS)
    with pytest.raises(ImageTooLarge, match="at most 20 scans"):
        check(jpeg(1024, 1024, 21), MAX_PIXELS)


def test_scans_of_a_thumbnail_do_not_count() -> None:
    thumbnail = many_scans(200)
    exif = b"Exif\0\0" + thumbnail[: 65_000 - 6]
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    data = SAMPLES["jpeg"][:2] + segment + SAMPLES["jpeg"][2:]
    assert check(data, MAX_PIXELS).scans == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"GIF89a\1\0\1\0\0\0\0;",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8 ",
        png(0, 10),
        png(10, 0),
        jpeg(10, 0),
        jpeg(10, 10),
        png(4, 4, 3),
        png(4, 4, 8, 2, b"\0" * 52, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))),
        png(4, 4, 8, 2, b"\0" * 52, *[chunk(b"teSt", b"")] * MOST_CHUNKS),
        jpeg(10, 10)[:2] + b"\xff\xe0\0\x02" * MOST_CHUNKS + jpeg(10, 10)[2:],
        SAMPLES["jpeg"][:2] + b"\xff" * (1 << 17) + SAMPLES["jpeg"][2:],
        SAMPLES["png"][:200],
        SAMPLES["jpeg"][:-20],
        SAMPLES["webp"][:-9],
        canvas(8, 8),
    ],
)
def test_broken_files_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="a PNG, JPEG or WebP picture") as caught:
        decode(data, MAX_PIXELS)
    assert not isinstance(caught.value, ImageTooLarge)
    assert len(str(caught.value)) < 400
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize(
    "filling", [b"\xff", b"\0", b"\xff\0", b"\xff\xd0", b"\xff\xda", b"\xff\xc0"]
)
@pytest.mark.parametrize("sound", [True, False])
def test_headers_are_read_in_linear_time(filling: bytes, sound: bool) -> None:
    """A large upload, filled with what is worst to go through; otherwise it takes days."""
    begin = SAMPLES["jpeg"] if sound else b"\xff\xd8\xff"
    data = begin.removesuffix(b"\xff\xd9") + filling * ((8 << 20) // len(filling))
    with suppress(ValueError):
        assert read_header(data) is not None


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_is_packed_small_is_not_unpacked_large(kind: bytes) -> None:
    packed = zlib.compress(b"\0" * (64 << 20), 9)
    body = b"name\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed
    data = png(4, 4, 8, 2, b"\0" * 52, chunk(kind, body))
    assert outcome(data) in ("picture", "refused")


@pytest.mark.filterwarnings("ignore")
def test_nothing_but_pictures_and_refusals_comes_out() -> None:
    """The long form is `python -m tests.support.odd_pictures 60000`."""
    assert {name: outcome(data) for name, data in SAMPLES.items()} == dict.fromkeys(
        SAMPLES, "picture"
    )
    counts = outcomes(mutated(1500))
    assert set(counts) == {"picture", "refused", "too large"}
    assert counts["picture"] > 200


def test_an_unexpected_error_is_a_refusal_too(monkeypatch: Any) -> None:
    """Whatever the decoder raises, it is the file's fault; too little memory is said."""
    data = SAMPLES["png"]
    for error, kind in ((KeyError("x"), InvalidInput), (MemoryError(), ImageTooLarge)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(InvalidInput) as caught:
            decode(data, MAX_PIXELS)
        assert type(caught.value) is kind
