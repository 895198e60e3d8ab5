"""The pictures that calls of the page start from: by id in the store, or uploaded files."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.pictures.encode import base64_of, encode
from sdxl_bento.ui.album import Start

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.protocols.http.api import API

MAX_FOLDER_BYTES = 1 << 30
_EDGE = 320  # pixels of a thumbnail


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small copy as a data URL, and the size of the original in pixels."""

    src: str
    width: int
    height: int


def check_room(folder: Path) -> None:
    """Raise Overloaded if the uploads in `folder` are too large in all.

    Gradio deletes each of them after `constants.CACHE_S`.
    """
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it is being deleted
            total += file.stat().st_size if file.is_file() else 0
    if total > MAX_FOLDER_BYTES:
        raise Overloaded("too many uploaded pictures are kept just now", retry_after_s=600)


async def thumbnail(path: str, api: API) -> Thumbnail:
    """Read an uploaded file. Raises InvalidInput if it is not a picture that calls may use."""
    data = await asyncio.to_thread(Path(path).read_bytes)
    return await asyncio.to_thread(_small_copy, await api.read_picture(data))


def _small_copy(image: Image) -> Thumbnail:
    width, height = image.size
    image.thumbnail((_EDGE, _EDGE))
    jpeg = base64_of(encode(image, "jpeg", quality=80))
    return Thumbnail(f"data:image/jpeg;base64,{jpeg}", width, height)


async def picture_of(start: Start) -> dict[str, Any]:
    """The field that names the picture in a native call. Raises InvalidInput."""
    if start.path is None:
        return {"image_id": start.image_id}
    try:
        return {"image": await asyncio.to_thread(Path(start.path).read_bytes)}
    except FileNotFoundError:
        name = Path(start.path).name
        raise InvalidInput("image", name, "a picture that is still here; upload it again") from None
