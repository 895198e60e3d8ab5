"""What the first bytes of a picture's file say, read without decoding anything.

It is read before a decoder sees the file, because some decoders allocate a whole picture when they
open it, and because none says how many scans a JPEG has. The time is linear in the file's size.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

Format = Literal["PNG", "JPEG", "WEBP"]

MOST_CHUNKS = 20_000  # chunks of a PNG, or segments of a JPEG
_MOST_FILLING = 1 << 16  # bytes; Pillow skips them one by one
_PNG = b"\x89PNG\r\n\x1a\n"
# In a JPEG's coded data, 0xFF is followed by 0 or by a restart marker; anything else ends the data.
# A marker may have more than one 0xFF before it. The pattern has no repetition, so it is linear.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1
_START_OF_SCAN, _START_OF_IMAGE, _END_OF_IMAGE = 0xDA, 0xD8, 0xD9


@dataclass(frozen=True, slots=True)
class Header:
    """The format of a file and the size of its picture in pixels.

    `scans` is how often a decoder goes over the whole picture, which is 1 except for a JPEG.
    `depth` is the number of bits in a PNG's channels, and 8 in other formats.
    """

    format: Format
    width: int
    height: int
    scans: int = 1
    depth: int = 8


def read_header(data: bytes) -> Header | None:
    """The header of a PNG, JPEG or WebP file; None if it is no such file.

    Raises:
        ValueError: the file is of such a format, but its header is broken.
    """
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        raise ValueError("it ends within its header") from None
    return None


def _png(data: bytes) -> Header:
    """PNG specification (third edition), 5.3 and 11.2.1."""
    length, kind, width, height, depth = struct.unpack_from(">I4sIIB", data, len(_PNG))
    if kind != b"IHDR" or length != 13:
        raise ValueError("it does not begin with an IHDR chunk")
    at, chunks = len(_PNG), 0
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise ValueError(f"it has over {MOST_CHUNKS} chunks")
        if data[at + 4 : at + 8] == b"IHDR":
            raise ValueError("it has two IHDR chunks")
    return Header("PNG", width, height, depth=depth)


def _jpeg(data: bytes) -> Header:
    """ITU-T T.81, annex B."""
    size: tuple[int, int] | None = None
    scans, at, in_scan = 0, 2, False
    for _ in range(MOST_CHUNKS):
        match = _NEXT_MARKER.search(data, at)
        if match is None:
            break
        if match.start() - at > _MOST_FILLING and not in_scan:
            raise ValueError(f"it has over {_MOST_FILLING} bytes between two segments")
        marker, at = match[1][0], match.end()
        if marker == _END_OF_IMAGE:
            break
        if marker == _START_OF_IMAGE:
            continue
        if marker in _START_OF_FRAME:
            found = struct.unpack_from(">HH", data, at + 3)
            if size not in (None, found):
                raise ValueError("it has two sizes")
            size = found
        in_scan = marker == _START_OF_SCAN
        scans += in_scan
        at += int.from_bytes(data[at : at + 2], "big")
    else:
        raise ValueError(f"it has over {MOST_CHUNKS} segments")
    if size is None or scans == 0:
        raise ValueError("it ends within its header")
    height, width = size
    return Header("JPEG", width, height, scans)


def _webp(data: bytes) -> Header:
    """RFC 9649, 2.5 to 2.7; RFC 6386, 9.1, for the frame of `VP8 `."""
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return Header("WEBP", width, height)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise ValueError("its lossless picture has the wrong signature")
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise ValueError("it does not begin with a picture")
