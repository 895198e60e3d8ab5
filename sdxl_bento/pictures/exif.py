"""Text in the EXIF data of a JPEG or WebP."""

from __future__ import annotations

import struct

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # tags; EXIF 2.32, 4.6.3 and 4.6.5
_LONG, _UNDEFINED = 4, 7  # types; 4.6.2


def user_comment(text: str) -> bytes:
    """EXIF data with the one field UserComment, in big-endian order, which all readers understand.

    It is assembled here because Pillow writes bytes with the type BYTE, where EXIF 2.32 asks for
    UNDEFINED.
    """
    data = b"UNICODE\0" + text.encode("utf-16-be")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    exif = struct.pack(">HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(data), 44, 0)
    return b"Exif\0\0" + header + first + exif + data
