"""From an uploaded file to an upright picture in RGB. See docs/reference/limits.md.

Whatever the file holds, this either gives a picture or raises InvalidInput. A server does it in
processes of their own (`decoder_pool`), so this module imports only what is small.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage
from PIL import ImageChops, ImageMath, UnidentifiedImageError
from PIL.Image import Transpose

from sdxl_bento.errors import InvalidInput
from sdxl_bento.pictures.headers import Header, read_header

if TYPE_CHECKING:
    from PIL.Image import Image

ALLOWED = "a PNG, JPEG or WebP picture"
MOST_SCANS = 100  # encoders write about ten
# A picture of the largest size may have so many scans, and a smaller one more.
SCANS_AT_FULL_SIZE = 20
_MOST_REASON = 200  # characters
_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class ImageTooLarge(InvalidInput):
    """An uploaded picture has more pixels, or is more work to decode, than the server accepts."""


def check(data: bytes, max_pixels: int, field: str = "image") -> Header:
    """The header of an uploaded file, which decides whether it may be decoded.

    Raises:
        ImageTooLarge: it has more than `max_pixels`, or more scans than a picture needs.
        InvalidInput: it is no PNG, JPEG or WebP file, or its header is broken.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise broken(field, error) from None
    if header is None:
        raise InvalidInput(field, f"{len(data)} bytes of something else", ALLOWED)
    pixels, size = header.width * header.height, f"{header.width}x{header.height}"
    if pixels == 0:
        raise InvalidInput(field, size, f"{ALLOWED} with at least one pixel")
    if pixels > max_pixels:
        raise ImageTooLarge(field, size, f"at most {max_pixels} pixels")
    scans = min(MOST_SCANS, SCANS_AT_FULL_SIZE * max_pixels // pixels)
    if header.scans > scans:
        value = f"a JPEG of {size} with {header.scans} scans"
        raise ImageTooLarge(field, value, f"at most {scans} scans at this size")
    return header


def decode(data: bytes, max_pixels: int, field: str = "image") -> Image:
    """An uploaded PNG, JPEG or WebP file as an upright RGB picture of 8 bits per channel.

    Transparent pixels are laid over white. 16 bits are reduced to 8. Of an animation, this is the
    first frame. Colour profiles are not applied, and an orientation that cannot be read is ignored.

    Raises:
        ImageTooLarge, InvalidInput: as `check`, and InvalidInput if the file is broken.
    """
    header = check(data, max_pixels, field)
    try:
        with PILImage.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                raise ValueError("its parts have different sizes")
            image.load()
            turn = _TURNS.get(_orientation(image))
            rgb = _over_white(image, header.depth)
    except MemoryError:
        size = f"{header.width}x{header.height}"
        raise ImageTooLarge(field, size, "a picture that takes less memory to decode") from None
    except UnidentifiedImageError:  # its text has nothing that helps
        raise broken(field, "its header cannot be read") from None
    except Exception as error:  # Pillow raises errors of many kinds for a broken file
        raise broken(field, error) from None
    return rgb if turn is None else rgb.transpose(turn)


def broken(field: str, reason: object) -> InvalidInput:
    """The error for a file that has the right format and cannot be decoded."""
    return InvalidInput(field, f"a broken file ({str(reason)[:_MOST_REASON]})", ALLOWED)


def _orientation(image: Image) -> int:
    """How the picture is to be turned, 1 if not at all. EXIF data may hold anything."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels do not depend on it
        return 1
    return value if isinstance(value, int) else 1


def _over_white(image: Image, depth: int) -> Image:
    """The picture in RGB over a white background. `depth` is that of the file."""
    alpha = _alpha(image, depth)
    image.info.pop("transparency", None)  # else converting would try to keep it
    if image.mode.startswith("I"):
        image = image.convert("I").point(_to_eight_bits(), "L")
    rgb = image.convert("RGB")
    if alpha is None:
        return rgb
    white = PILImage.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def _alpha(image: Image, depth: int) -> Image | None:
    """The opacity of each pixel, in mode L; None if all are opaque."""
    if "A" in image.getbands():
        return image.getchannel("A")
    key: Any = image.info.get("transparency")  # a colour, or the opacities of a palette
    if key is None:
        return None
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    if image.mode.startswith("I"):
        wide = image.convert("I")
        mask: Image = ImageMath.lambda_eval(
            lambda of: of["convert"]((of["wide"] != key) * 255, "L"), wide=wide
        )
        return mask
    if image.mode == "RGB":
        # Of 16 bits, Pillow keeps the upper eight.
        keys = [each >> 8 if depth == 16 else each for each in key]
        red, green, blue = map(_differs, image.split(), keys)
        return ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return _differs(image.convert("L"), key * 255 // (2**depth - 1))


def _differs(channel: Image, value: int) -> Image:
    """255 where the channel does not have this value, elsewhere 0."""
    return channel.point([0 if each == value else 255 for each in range(256)])


@cache
def _to_eight_bits() -> list[int]:
    """For each value of 16 bits the nearest one of 8."""
    return [(value + 128) // 257 for value in range(1 << 16)]
