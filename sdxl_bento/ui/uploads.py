"""Pictures to begin with: one of the store by its id, one of the visitor's own as a file."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.images import decode, encode
from sdxl_bento.ui.album import Start

_EDGE = 320  # pixels of a thumbnail


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small copy as an address, and the size in pixels of what it is a copy of."""

    src: str
    width: int
    height: int


def thumbnail(path: str, max_pixels: int) -> Thumbnail:
    """Look at an uploaded file. Raises InvalidInput if it is no picture that is taken here."""
    image = decode(Path(path).read_bytes(), max_pixels)
    width, height = image.size
    image.thumbnail((_EDGE, _EDGE))
    jpeg = base64.b64encode(encode(image, "jpeg", quality=80)).decode("ascii")
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
