"""Validation of untrusted fields. Errors name the field, its value, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.translation import Rules, nearest

NO_RULES = Rules()

MAX_FIELDS = 128


def parse_params(fields: object, rules: Rules = NO_RULES) -> GenerateParams:
    """Validate native fields. Raises InvalidInput for the first field that is wrong.

    `rules` has the bounds of this server, which the errors name.
    """
    if not isinstance(fields, Mapping):
        raise InvalidInput("body", fields, 'a JSON object, such as {"prompt": "a red circle"}')
    if len(fields) > MAX_FIELDS:  # each unknown one would be an error of its own
        raise InvalidInput("body", f"{len(fields)} fields", f"at most {MAX_FIELDS} fields")
    try:
        return GenerateParams.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False)[0], fields, rules) from None


def _invalid(detail: ErrorDetails, fields: Mapping[str, Any], rules: Rules) -> InvalidInput:
    path = detail["loc"]
    allowed = _words(_limited(_schema_at(*path), rules.bounds.get(str(path[0])))) if path else ""
    field = ".".join(str(part) for part in path) or "body"
    if detail["type"] == "extra_forbidden":
        return InvalidInput(field, detail["input"], _known_fields(*path))
    if detail["type"] == "missing":
        return InvalidInput(field, None, f"{allowed or 'a value'}; it is required")
    if not path:
        return InvalidInput(*_cross_field_error(detail["msg"], fields))
    return InvalidInput(field, detail["input"], allowed or detail["msg"])


def _cross_field_error(message: str, fields: Mapping[str, Any]) -> tuple[str, object, str]:
    """Field, value and message of a check across fields. The field is the first in the message."""
    text = message.removeprefix("Value error, ")
    field = next((word for word in text.replace(",", " ").split() if word in fields), "body")
    return field, fields.get(field), text


def _known_fields(*path: str | int) -> str:
    """The known names at the place of the unknown one at `path`, the most similar one first."""
    known = list(_schema_at(*path[:-1]).get("properties", {}))
    return f"{nearest(str(path[-1])[:64], known)}one of the fields {', '.join(known)}"


def _limited(schema: Mapping[str, Any], bounds: tuple[int, int] | None) -> Mapping[str, Any]:
    """The schema of a number within the bounds of this server."""
    if bounds is None:
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [_limited(each, bounds) for each in schema["anyOf"]]}
    if "maximum" not in schema:
        return schema
    low, high = max(schema["minimum"], bounds[0]), min(schema["maximum"], bounds[1])
    return {**schema, "minimum": low, "maximum": high}


def _schema_at(*path: str | int) -> Mapping[str, Any]:
    """The JSON schema of the field at `path`, such as `("loras", 0, "scale")`."""
    schema: Mapping[str, Any] = _schema()
    for part in path:
        schema = _plain(schema)
        if isinstance(part, str):
            schema = schema.get("properties", {}).get(part, {})
        else:
            schema = schema.get("items", {})
    return _plain(schema) if "$ref" in schema else schema


def _plain(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself: the first branch of an `anyOf`, the target of a `$ref`."""
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    if "$ref" in schema:
        target: Mapping[str, Any] = _schema()["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        return target
    return schema


@cache
def _schema() -> dict[str, Any]:
    return GenerateParams.model_json_schema()


def _words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: `an integer from 1 to 200, or null`."""
    if "anyOf" in schema:
        return ", or ".join(filter(None, (_words(each) for each in schema["anyOf"])))
    if "$ref" in schema:
        return _words(_plain(schema))
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return f"{'an integer' if kind == 'integer' else 'a number'}{_range(schema)}"
    if kind == "string":
        longest = schema.get("maxLength")
        return f"text of at most {longest} characters" if longest else "text"
    if kind == "array":
        return _array_words(schema)
    if kind == "object":
        return f"an object with {', '.join(schema.get('properties', {}))}"
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "")


def _range(schema: Mapping[str, Any]) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    above = "over" if "exclusiveMinimum" in schema else "from"
    under = "under" if "exclusiveMaximum" in schema else "to"
    return f" {above} {low}" + (f" {under} {high}" if high is not None else "")


def _array_words(schema: Mapping[str, Any]) -> str:
    item = _words(schema.get("items", {}))
    most, least = schema.get("maxItems"), schema.get("minItems")
    count = f"{most}" if most is not None and most == least else f"at most {most}"
    return f"a list of {count if most is not None else 'any number of'} items, each {item}"
