"""The files of pictures in a call's fields: as a form carries them, or in base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import TypeVar

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http import bodies
from sdxl_bento.protocols.http.errors import BodyTooLarge

ALLOWED = "a PNG, JPEG or WebP file, or one in base64"
_DATA_URL = re.compile(r"\s*data:(image/[^,;]*|application/octet-stream)?(;[^,]*)?,", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LINE_BREAKS = b"\t\r\n\f\v"  # `base64 FILE` breaks its lines
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
# The same in the text as it was sent; "=" is wrong if anything but "=" follows.
_WRONG = re.compile(r"[^A-Za-z0-9+/_=\t\r\n\f\v-]|=(?=[=\t\r\n\f\v]*[^=\t\r\n\f\v])")
_PIECE = 1 << 20  # characters, a multiple of 4; between pieces, other threads have a turn
_SHOWN = 200  # characters of the value in an error
T = TypeVar("T", str, bytes)


def shortened(value: object) -> object:
    """The value of a picture's field for an error, which is not to copy a whole file."""
    return value[:_SHOWN] if isinstance(value, str | bytes) else value


def picture_bytes(value: object, field: str = "image") -> bytes:
    """The file in a field: from a form, or base64 text, also in a data URL. It is not decoded.

    Both alphabets of base64 are read (RFC 4648, 4 and 5), with or without padding, and in lines of
    any length. Up to 32 MiB take a tenth of a second, so call it from a thread.

    Raises:
        BodyTooLarge: the text is longer than an upload may be.
        InvalidInput: it is neither. The message says what is wrong with it, and where.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidInput(field, value, ALLOWED)
    most = bodies.MAX_UPLOAD_BYTES
    if len(value) > most:
        raise BodyTooLarge(field, f"{len(value)} characters", f"at most {most}")
    prefix = _DATA_URL.match(value)
    if prefix is None and _ADDRESS.match(value):
        raise _wrong(field, value, "addresses are not fetched, and data URLs are those of pictures")
    if prefix is not None and not (prefix[2] or "").lower().endswith(";base64"):
        raise _wrong(field, value, "this data URL is not in base64")
    sent = value[prefix.end() if prefix is not None else 0 :].strip()
    text = b"".join(map(_plain, _pieces(sent))).rstrip(b"=")
    if _NOT_BASE64.search(text):
        raise _wrong(field, value, _found(value, sent))
    if not text:
        raise _wrong(field, value, "this is empty")
    if len(text) % 4 == 1:  # whole bytes never leave one character alone
        raise _wrong(field, value, f"its {len(text)} characters end within a byte, so it was cut")
    return b"".join(base64.b64decode(piece + b"=" * (-len(piece) % 4)) for piece in _pieces(text))


def _pieces(text: T) -> Iterator[T]:
    return (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))


def _plain(piece: str) -> bytes:
    """Text in the usual alphabet and without line breaks. What is no ASCII stays wrong."""
    return piece.encode("ascii", "replace").translate(_URL_SAFE, _LINE_BREAKS)


def _found(value: str, sent: str) -> str:
    """Which character is wrong. `sent` is the part of `value` that should be base64."""
    wrong = _WRONG.search(sent)
    assert wrong is not None
    place = value.index(sent) + wrong.start() + 1
    hint = "; in a form, + has to be written as %2B" if wrong[0] == " " else ""
    return f"character {place} is {wrong[0]!r}, which base64 does not have there{hint}"


def _wrong(field: str, value: str, reason: str) -> InvalidInput:
    return InvalidInput(field, shortened(value), f"{ALLOWED}; {reason}")
