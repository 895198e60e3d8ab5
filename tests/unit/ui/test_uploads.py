"""Pictures to begin with: looked at before they are taken, and only so many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.pictures.decode import decode
from sdxl_bento.ui import uploads
from sdxl_bento.ui.album import Start


class Reader:
    """The part of the API that reads pictures."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels

    async def read_picture(self, data: bytes) -> Image.Image:
        return decode(data, self.max_pixels)


async def test_a_thumbnail_knows_the_size_of_its_original(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (1000, 500)).save(path)
    reader: Any = Reader(1_000_000)
    small = await uploads.thumbnail(str(path), reader)
    assert (small.width, small.height) == (1000, 500)
    assert small.src.startswith("data:image/jpeg;base64,")
    reader.max_pixels = 1000
    with pytest.raises(InvalidInput, match="at most 1000 pixels"):
        await uploads.thumbnail(str(path), reader)


async def test_a_picture_is_named_or_brought(tmp_path: Path) -> None:
    assert await uploads.picture_of(Start("", image_id="i")) == {"image_id": "i"}
    path = tmp_path / "mine.png"
    path.write_bytes(b"bytes")
    start = Start("", path=str(path))
    assert await uploads.picture_of(start) == {"image": b"bytes"}
    path.unlink()
    with pytest.raises(InvalidInput, match="upload it again"):
        await uploads.picture_of(start)


def test_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "one.png").write_bytes(b"x" * 100)
    (tmp_path / "two.png").write_bytes(b"x")
    monkeypatch.setattr(uploads, "MAX_FOLDER_BYTES", 101)
    uploads.check_room(tmp_path)
    monkeypatch.setattr(uploads, "MAX_FOLDER_BYTES", 100)
    with pytest.raises(Overloaded, match="uploaded") as refused:
        uploads.check_room(tmp_path)
    assert refused.value.retry_after_s == 600
