"""Encoding."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from PIL import Image

from sdxl_bento.pictures.encode import Encoder, encode

TEXT = {"parameters": "a größe ☃ 🙂\nSteps: 20", "sdxl-bento": '{"prompt": "größe ☃"}'}


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
    data = encode(picture, "png", text=TEXT)
    back = Image.open(io.BytesIO(data))
    assert back.tobytes() == picture.tobytes()
    assert {name: back.info[name] for name in TEXT} == TEXT
    assert b"tEXtparameters\0a red" in encode(picture, "png", text={"parameters": "a red"})


def test_the_same_picture_gives_the_same_bytes(picture: Image.Image) -> None:
    for name in ("png", "webp", "jpeg"):
        assert encode(picture, name, text={"a": "b"}) == encode(picture, name, text={"a": "b"})


def test_level_and_quality_matter() -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    flat = Image.new("RGB", (256, 256), (9, 9, 9))
    assert len(encode(flat, "png", png_level=9)) < len(encode(flat, "png", png_level=0))
    assert len(encode(noise, "jpeg", quality=20)) < len(encode(noise, "jpeg", quality=95))
    assert len(encode(noise, "webp", quality=20)) < len(encode(noise, "webp", quality=95))


def test_what_is_left_out() -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    assert encode(noise, "png") == encode(noise, "png", png_level=1, text={})
    for name in ("jpeg", "webp"):
        assert encode(noise, name) == encode(noise, name, quality=90)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_every_picture_is_written_as_rgb(picture: Image.Image, name: Any, mode: str) -> None:
    assert Image.open(io.BytesIO(encode(picture.convert(mode), name))).mode == "RGB"


async def test_the_encoder_works_in_its_own_threads(picture: Image.Image) -> None:
    encoder = Encoder(png_level=1)
    try:
        assert await encoder.encode(picture, "png", 90, {}) == encode(picture, "png")
        names = [thread.name for thread in threading.enumerate()]
        assert any(name.startswith("sdxl-encode") for name in names)
    finally:
        encoder.close()


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_jpeg_and_webp_carry_text_as_a_user_comment(picture: Image.Image, name: Any) -> None:
    """Byte for byte as EXIF 2.32 has it: the character code, then UTF-16 in the file's order."""
    data = encode(picture, name, text=TEXT)
    back = Image.open(io.BytesIO(data))
    assert back.info["exif"].removeprefix(b"Exif\0\0").startswith(b"MM")  # big-endian
    assert b"\x92\x86\0\x07" in back.info["exif"]  # a tag of type UNDEFINED
    comment = back.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + TEXT["parameters"].encode("utf-16-be")
    plain = Image.open(io.BytesIO(encode(picture, name)))
    assert not plain.getexif()
    assert plain.tobytes() == back.tobytes()


def test_text_that_is_too_long_for_a_jpeg_is_left_out(picture: Image.Image) -> None:
    data = encode(picture, "jpeg", text={"parameters": "x" * 40_000})
    assert not Image.open(io.BytesIO(data)).getexif()
