"""Forms as fields. Values are parsed as JSON, and names with brackets make lists and objects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

import pydantic_core
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.errors import MalformedBody

MAX_FILES = 16  # no call uses more than one, but the error about that is the protocol's own
MAX_FIELDS = 64
_OBJECTS = re.compile(r"(\w+)\[\]\[(\w+)\]\Z")
_TEXTS = frozenset(
    name
    for name, field in GenerateParams.model_fields.items()
    if field.annotation in (str, str | None)
)


async def read_multipart(request: Request, max_part_size: int) -> dict[str, object]:
    """The fields of a multipart form, files as bytes. Raises MalformedBody."""
    fields: list[tuple[str, object]] = []
    try:
        form = request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=max_part_size)
        async with form as parts:
            for name, part in parts.multi_items():
                if isinstance(part, UploadFile):
                    fields.append((name, await part.read()))
                else:
                    fields.append((name, _value(name, part)))
    except (HTTPException, MultiPartException, KeyError) as error:
        raise MalformedBody("body", "a form", f"multipart/form-data; {error}") from None
    return _nested(fields)


def read_urlencoded(body: bytes) -> dict[str, object]:
    """The fields of a form without files."""
    pairs = parse_qsl(body.decode("utf-8", "replace"))
    return _nested((name, _value(name, text)) for name, text in pairs)


def _value(name: str, text: str) -> object:
    """Parse a form's value as JSON if possible, because BentoML's clients send JSON."""
    try:
        value = pydantic_core.from_json(text)
    except ValueError:
        return text
    # A prompt such as "1984" stays a text.
    return text if name in _TEXTS and not isinstance(value, str | None) else value


def _nested(fields: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Make `a[]` a list and `a[][b]` a list of objects, as OpenAI's clients send them.

    A plain name that comes twice is a list, too, for the field's own check to refuse.
    """
    by_name: dict[str, list[object]] = {}
    for name, value in fields:
        by_name.setdefault(name, []).append(value)
    nested: dict[str, object] = {}
    for name, values in by_name.items():
        if match := _OBJECTS.match(name):
            nested[match[1]] = _objects(
                nested.get(match[1], [{} for _ in values]), match[2], values
            )
        elif name.endswith("[]"):
            nested[name.removesuffix("[]")] = values
        else:
            nested[name] = values if len(values) > 1 else values[0]
    return nested


def _objects(objects: object, key: str, values: list[object]) -> object:
    if not isinstance(objects, list) or len(objects) != len(values):
        raise MalformedBody("body", "a form", f"as many values of {key} as objects that have it")
    return [{**each, key: value} for each, value in zip(objects, values, strict=True)]
