"""Bounds on JSON that are checked before it is parsed.

A parser holds Python's global lock until it has built every value, so a thread alone protects
nobody: 16 MiB of `[],[],` would stop the server for a second. What a caller may send is therefore
counted first, in steps that are short and never look at a byte twice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http.errors import MalformedBody

MAX_DEPTH = 64
MAX_VALUES = 32_768
MAX_NAME_CHARS = 256
MAX_DIGITS = 20  # of an integer: those of the largest that has 64 bits
MAX_NUMBER_CHARS = 64
_MAX_TOKENS = 4 * MAX_VALUES  # a value, its name and a comma are three

# What matters outside of texts: the begin of a text, brackets, commas and numbers.
_TOKEN = re.compile(rb'["\[\]{},]|-?\d[\d.eE+-]{0,64}')
_STEP = 1 << 16  # bytes to look at in one search
# A part of a text with escapes. It is bounded so that one match is short, and possessive, so that
# it never goes back.
_ESCAPED = re.compile(rb'(?:[^"\\]{1,65536}+|\\.){1,4096}+', re.DOTALL)
_BLANK = re.compile(rb"[ \t\r\n]*+")


@dataclass
class _Seen:
    """What has been counted so far, and the name of the last field."""

    name: str
    depth: int = 0
    values: int = 0
    tokens: int = 0


def check_json(body: bytes, field: str = "body") -> None:
    """Check the bounds above. What is no JSON at all passes: the parser tells it better.

    `field` is named in errors as long as no name within the JSON has been seen.

    Raises:
        InvalidInput: a number is too long, or would be infinite. It names the nearest field.
        MalformedBody: there are too many values, they are nested too deeply, or a name is too long.
    """
    seen, place = _Seen(field), 0
    while place < len(body):
        token = _next_token(body, place)
        if token is None:
            place += _STEP
            continue
        place, seen.tokens = token.end(), seen.tokens + 1
        first = body[token.start() : token.start() + 1]
        if first == b'"':
            place = _after_text(body, place)
            place = _note_name(body, token.end(), place, seen)
        elif first in b"[{":
            seen.depth += 1
            seen.values += 1
        elif first in b"]}":
            seen.depth -= 1
        elif first == b",":
            seen.values += 1
        else:
            check_number(seen.name, token[0])
        if seen.depth > MAX_DEPTH:
            raise _too_much(f"{seen.depth} levels", f"JSON nested at most {MAX_DEPTH} levels deep")
        if seen.values > MAX_VALUES or seen.tokens > _MAX_TOKENS:
            raise _too_much(f"over {MAX_VALUES} values", f"JSON of at most {MAX_VALUES} values")


def check_number(field: str, text: bytes) -> None:
    """Check one number as it is written. Raises InvalidInput, which names `field`."""
    digits = text.removeprefix(b"-")
    if len(digits) > (MAX_DIGITS if digits.isdigit() else MAX_NUMBER_CHARS):
        allowed = f"a number of at most {MAX_DIGITS} digits, or {MAX_NUMBER_CHARS} characters"
        raise InvalidInput(field, _shown(text), allowed)
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        return  # the parser tells what is wrong
    if not finite:
        raise InvalidInput(field, _shown(text), "a finite number")


def _next_token(body: bytes, place: int) -> re.Match[bytes] | None:
    """The first token that begins in the step at `place`."""
    token = _TOKEN.search(body, place, place + _STEP)
    if token is not None and token.end() == place + _STEP:  # the rest of it is in the next step
        return _TOKEN.match(body, token.start())
    return token


def _after_text(body: bytes, place: int) -> int:
    """The index after the text that begins at `place`, which is behind its quotation mark."""
    end = body.find(b'"', place)
    if end < 0:
        return len(body)
    escape = body.find(b"\\", place, end)
    if escape < 0:
        return end + 1
    place = escape
    while part := _ESCAPED.match(body, place):
        place = part.end()
    return place + 1


def _note_name(body: bytes, begin: int, end: int, seen: _Seen) -> int:
    """Remember the text before `end` if it is a field's name. Returns where to go on."""
    blank = _BLANK.match(body, end)
    after = blank.end() if blank else end
    if body[after : after + 1] == b":":
        if end - begin > MAX_NAME_CHARS + 1:
            shown = f"{end - begin - 1} bytes"
            raise _too_much(shown, f"names of at most {MAX_NAME_CHARS} bytes in JSON")
        seen.name = body[begin : end - 1].decode("utf-8", "replace")
    return after


def _too_much(value: str, allowed: str) -> MalformedBody:
    return MalformedBody("body", value, allowed)


def _shown(text: bytes) -> str:
    return text[:80].decode("ascii", "replace")
