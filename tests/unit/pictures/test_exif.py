"""Text in EXIF data, as other readers find it."""

from __future__ import annotations

import pytest
from PIL import Image

from sdxl_bento.pictures.exif import user_comment


@pytest.mark.parametrize("text", ["", "a", "größe ☃ 🙂\nSteps: 20", "x" * 5000])
def test_a_reader_gets_the_text_back(text: str) -> None:
    exif = Image.Exif()
    exif.load(user_comment(text))
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be") == text
    assert list(exif) == [0x8769]
    assert exif.get_ifd(0x8769).keys() == {0x9286}


def test_to_the_byte() -> None:
    """EXIF 2.32: two directories of one field each, at the offsets 8 and 26."""
    assert user_comment("A") == (
        b"Exif\0\0MM\0*\0\0\0\x08"
        b"\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0"
        b"\0\x01\x92\x86\0\x07\0\0\0\x0a\0\0\0\x2c\0\0\0\0"
        b"UNICODE\0\0A"
    )
