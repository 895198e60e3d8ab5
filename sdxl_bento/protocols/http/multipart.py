"""The parts of a multipart form whose body is complete (RFC 7578).

Starlette's parser reads a stream. It goes through headers byte by byte in Python, gives them to
`email`, which takes quadratic time, and decodes text with any codec that the caller names, some of
which are quadratic too. With the whole body at hand, two searches for each part are enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

MAX_FILES = 16  # no call uses more than one, but the error about that is the protocol's own
MAX_FIELDS = 64
MAX_HEADER_BYTES = 2048  # of one part
MAX_BOUNDARY_BYTES = 70  # RFC 2046, 5.1.1
_STEP = 1 << 20

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition[ \t]*:", re.IGNORECASE)


class BrokenForm(ValueError):
    """The body is no multipart form, or one with too many or too large parts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: a field, or a file if `is_file`."""

    name: str
    data: bytes
    is_file: bool


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type. Raises BrokenForm."""
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2]).encode("latin-1", "replace") if found else b""
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise BrokenForm(f"a boundary of 1 to {MAX_BOUNDARY_BYTES} characters in the Content-Type")
    return boundary


def parts_of(body: bytes, boundary: bytes, max_field_bytes: int) -> list[Part]:
    """The parts of a complete body. Files may have any size. Raises BrokenForm."""
    parts: list[Part] = []
    files = 0
    for begin, end in _spans(body, b"\r\n--" + boundary):
        part = _part(body, begin, end)
        files += part.is_file
        if files > MAX_FILES or len(parts) + 1 - files > MAX_FIELDS:
            raise BrokenForm(f"at most {MAX_FILES} files and {MAX_FIELDS} fields")
        if not part.is_file and len(part.data) > max_field_bytes:
            raise BrokenForm(f"fields of at most {max_field_bytes} bytes")
        parts.append(part)
    return parts


def _spans(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of every part with its headers."""
    opening = delimiter[2:]
    begin = 0 if body.startswith(opening) else _find(body, delimiter, 0) + 2
    if begin == 1:
        raise BrokenForm("the boundary of the Content-Type before every part")
    place = begin + len(opening)
    while body[place : place + 2] != b"--":
        if body[place : place + 2] != b"\r\n":
            raise BrokenForm("a line's end behind every boundary")
        end = _find(body, delimiter, place)
        if end < 0:
            raise BrokenForm("the boundary and two dashes at its end")
        yield place + 2, end
        place = end + len(delimiter)


def _find(body: bytes, delimiter: bytes, place: int) -> int:
    """`body.find`, in steps, because a search holds Python's lock."""
    while place < len(body):
        found = body.find(delimiter, place, place + _STEP + len(delimiter))
        if found >= 0:
            return found
        place += _STEP
    return -1


def _part(body: bytes, begin: int, end: int) -> Part:
    headers_end = body.find(b"\r\n\r\n", begin, min(end, begin + MAX_HEADER_BYTES))
    if headers_end < 0:
        raise BrokenForm(f"headers of at most {MAX_HEADER_BYTES} bytes before every part")
    for line in body[begin:headers_end].split(b"\r\n"):
        if named := _DISPOSITION.match(line):
            _, options = parse_options_header(line[named.end() :].strip())
            if b"name" in options:
                data = body[headers_end + 4 : end]
                return Part(text_of(options[b"name"]), data, b"filename" in options)
    raise BrokenForm('a Content-Disposition with a "name" in every part')


def text_of(data: bytes) -> str:
    """UTF-8, or else Latin-1. No charset that a caller names is used: it could be any codec."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
