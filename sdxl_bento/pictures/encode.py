"""From pictures to the bytes of their files, off the event loop."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import PngImagePlugin

from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.exif import user_comment

if TYPE_CHECKING:
    from PIL.Image import Image

MEDIA_TYPES: Mapping[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}
_MOST_EXIF = 65_000  # bytes; a JPEG has one segment of 64 KiB for it


def encode(
    image: Image,
    output_format: OutputFormat,
    *,
    png_level: int = 1,
    quality: int = 90,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """The picture as a file. The same input always gives the same bytes.

    Args:
        image: the picture.
        output_format: of the file.
        png_level: zlib's level for PNG. At 1024x1024, level 1 takes a sixth of the time of Pillow's
            default level.
        quality: of JPEG and WebP, from 1 to 100.
        text: written into a PNG's text chunks. JPEG and WebP take only its `parameters`, as EXIF.
    """
    out = io.BytesIO()
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if output_format == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            info.add_text(key, value)  # as tEXt where Latin-1 has its letters, as iTXt elsewhere
        rgb.save(out, "PNG", compress_level=png_level, pnginfo=info)
    else:
        exif = _exif((text or {}).get("parameters", ""))
        rgb.save(out, output_format.upper(), quality=quality, exif=exif)
    return out.getvalue()


def _exif(text: str) -> bytes:
    """The text as EXIF data; empty if there is no text, or more than fits into a JPEG."""
    data = user_comment(text) if text else b""
    return data if len(data) <= _MOST_EXIF else b""


def base64_of(data: bytes) -> str:
    """A picture's file as text, for JSON and for data URLs."""
    return base64.b64encode(data).decode("ascii")


class Encoder:
    """Encodes in a few threads, so that a large PNG never blocks the event loop."""

    def __init__(self, png_level: int, threads: int = 2) -> None:
        self._png_level = png_level
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sdxl-encode")

    async def encode(
        self, image: Image, output_format: OutputFormat, quality: int, text: Mapping[str, str]
    ) -> bytes:
        """`encode` in a thread of this pool."""
        loop = asyncio.get_running_loop()

        def work() -> bytes:
            level = self._png_level
            return encode(image, output_format, png_level=level, quality=quality, text=text)

        return await loop.run_in_executor(self._pool, work)

    def close(self) -> None:
        """End the threads, after the work that has begun."""
        self._pool.shutdown(wait=True)
