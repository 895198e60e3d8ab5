"""Pictures as bytes, encoded off the event loop."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image as PILImage
from PIL import ImageOps, PngImagePlugin, UnidentifiedImageError

from sdxl_bento.errors import InvalidInput
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


class ImageTooLarge(InvalidInput):
    """An uploaded picture has more pixels than this server takes."""


def decode(data: bytes, max_pixels: int) -> Image:
    """An uploaded PNG, JPEG or WebP as an upright RGB picture.

    Raises InvalidInput, or ImageTooLarge before the pixels are unpacked.
    """
    allowed = "a PNG, JPEG or WebP picture"
    try:
        image: Image = PILImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise ImageTooLarge("image", size, f"at most {max_pixels} pixels")
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise InvalidInput("image", f"{len(data)} bytes of something else", allowed) from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say "broken file"
        raise InvalidInput("image", f"a broken file ({error})", allowed) from None


def encode(
    image: Image,
    output_format: OutputFormat,
    *,
    png_level: int = 1,
    quality: int = 90,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """The picture as a file; the same input, the same bytes.

    `text` goes into a PNG's text chunks; JPEG and WebP take its `parameters`, as EXIF. PNG's level
    is 1 by default: at 1024x1024 it takes a sixth of the time of Pillow's default level.
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
    """The text as EXIF data; none where there is no text, or too much for a JPEG."""
    data = user_comment(text) if text else b""
    return data if len(data) <= _MOST_EXIF else b""


class Encoder:
    """Encodes in a few threads, so that a large PNG never holds up the event loop."""

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
        """End the threads; what is under way is finished first."""
        self._pool.shutdown(wait=True)
