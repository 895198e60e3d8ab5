"""Forms as fields. Values are parsed as JSON, and names with brackets make lists and objects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

import pydantic_core
from starlette.requests import Request

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.caller import whole_body
from sdxl_bento.protocols.http.errors import BodyTooLarge, MalformedBody
from sdxl_bento.protocols.http.json_bounds import check_json
from sdxl_bento.protocols.http.multipart import (
    MAX_FIELDS,
    MAX_FILES,
    BrokenForm,
    boundary_of,
    parts_of,
    text_of,
)
from sdxl_bento.protocols.http.off_loop import off_loop

__all__ = ["MAX_FIELDS", "MAX_FILES", "read_multipart", "read_urlencoded"]

MAX_NAME_CHARS = 128
MAX_URLENCODED_BYTES = 1 << 20  # it has no files
_OBJECTS = re.compile(r"(\w+)\[\]\[(\w+)\]\Z")
_TEXTS = frozenset(
    name
    for name, field in GenerateParams.model_fields.items()
    if field.annotation in (str, str | None)
)


async def read_multipart(request: Request, max_part_size: int) -> dict[str, object]:
    """The fields of a multipart form, files as bytes. Raises MalformedBody."""
    body = await whole_body(request)
    kind = request.headers.get("content-type", "")
    return await off_loop(len(body), _multipart, body, kind, max_part_size)


def read_urlencoded(body: bytes) -> dict[str, object]:
    """The fields of a form without files. Raises MalformedBody, BodyTooLarge."""
    if len(body) > MAX_URLENCODED_BYTES:
        allowed = f"at most {MAX_URLENCODED_BYTES} bytes of application/x-www-form-urlencoded"
        raise BodyTooLarge("body", f"{len(body)} bytes", allowed)
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    except ValueError:
        raise MalformedBody("body", "a form", f"a form of at most {MAX_FIELDS} fields") from None
    return _nested((name, _value(name, text)) for name, text in pairs)


def _multipart(body: bytes, content_type: str, max_part_size: int) -> dict[str, object]:
    try:
        parts = parts_of(body, boundary_of(content_type), max_part_size)
    except BrokenForm as error:
        raise MalformedBody("body", "a form", f"multipart/form-data; {error}") from None
    return _nested(
        (part.name, part.data if part.is_file else _value(part.name, text_of(part.data)))
        for part in parts
    )


def _value(name: str, text: str) -> object:
    """Parse a form's value as JSON if possible, because BentoML's clients send JSON."""
    try:
        data = text.encode()
        check_json(data)
        value = pydantic_core.from_json(data, allow_inf_nan=False)
    except (ValueError, InvalidInput):  # a text, or a number for the field's own check to refuse
        return text
    # A prompt such as "1984" stays a text.
    return text if name in _TEXTS and not isinstance(value, str | None) else value


def _nested(fields: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Make `a[]` a list and `a[][b]` a list of objects, as OpenAI's clients send them.

    A plain name that comes twice is a list, too, for the field's own check to refuse.
    """
    by_name: dict[str, list[object]] = {}
    for name, value in fields:
        if len(name) > MAX_NAME_CHARS:
            shown = f"a name of {len(name)} characters"
            raise MalformedBody("body", shown, f"names of at most {MAX_NAME_CHARS} characters")
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
