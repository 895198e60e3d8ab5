"""A request of the Open Inference Protocol → the native parameters of each row.

Input tensors are fields that differ by row. `parameters` are fields that all rows share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pydantic_core

from sdxl_bento.errors import InvalidInput, shown
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.bodies import read_json, sent_as_headers, with_headers
from sdxl_bento.protocols.http.json_bounds import check_json
from sdxl_bento.protocols.http.native_fields import aliases, native_fields
from sdxl_bento.protocols.http.translation import Translation, nearest
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.protocols.kserve.v2.envelope import check_envelope
from sdxl_bento.protocols.kserve.v2.tensors import HEADER_LENGTH, Tensor, read_tensors, split_body

OUTPUTS = {"image": "BYTES", "seed": "INT64", "image_id": "BYTES", "pixels": "UINT8"}
DEFAULT_OUTPUTS = ("image", "seed", "image_id")  # of a request that names none
# Triton's priorities are 1, the highest, to 21. Ours are 10, the highest, to -10.
_TRITON_PRIORITY = 11
MAX_ID_CHARS = 1000
MAX_TIMEOUT_US = 3_600_000_000  # as much as the native field `slo_ms` allows


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request asks for. `binary`: as raw bytes behind the JSON."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Inference:
    """A validated request: the parameters of every row, and the outputs to answer with.

    `translations` say where the fields of each row come from.
    """

    id: str | None
    rows: list[GenerateParams]
    outputs: list[RequestedOutput]
    translations: list[Translation] = field(default_factory=list)


@cache
def inputs() -> dict[str, tuple[str, int]]:
    """The inputs: the name of each field of a call → its datatype and number of elements a row."""
    datatypes = {"string": "BYTES", "integer": "INT64", "number": "FP32", "boolean": "BOOL"}
    tensors: dict[str, tuple[str, int]] = {}
    for name, schema in GenerateParams.model_json_schema()["properties"].items():
        plain = schema.get("anyOf", [schema])[0]
        if name == "model":
            continue  # the address names it
        if plain.get("type") != "array":
            tensors[name] = (datatypes[plain["type"]], 1)
        elif "$ref" in plain["items"]:
            tensors[name] = ("BYTES", 1)  # a list of objects, as JSON
        else:
            tensors[name] = (datatypes[plain["items"]["type"]], plain["maxItems"])
    return tensors


def read_inference(
    body: bytes,
    headers: Mapping[str, str],
    model: str,
    limit: int,
    translation: Translation | None = None,
) -> Inference:
    """Read a request.

    Args:
        body: the JSON, and the raw tensors behind it.
        headers: of the request.
        model: the one in the address.
        limit: the most rows.
        translation: of the call.

    Raises InvalidInput for the first thing that is wrong.
    """
    translation = translation or Translation()
    header, raw = split_body(body, headers.get(HEADER_LENGTH))
    document = read_json(header)
    if not isinstance(document, Mapping):
        raise InvalidInput("body", document, 'a JSON object with "inputs"')
    document = check_envelope(document, model, translation)
    parameters = document.get("parameters") or {}
    in_body = _native_parameters(parameters, translation)
    common = with_headers(in_body, headers)
    translation.sent |= sent_as_headers(in_body, headers)
    assert isinstance(common, Mapping)
    tensors = _by_field(read_tensors(document.get("inputs"), raw), translation)
    rows, translations = _rows(tensors, {**common, "model": model}, limit, translation)
    outputs = _outputs(document.get("outputs"), parameters.get("binary_data_output", False))
    _check_consistent(rows, outputs)
    return Inference(_id(document.get("id")), rows, outputs, translations)


def _id(request_id: object) -> str | None:
    """The request's id, which the answer repeats."""
    if request_id is None:
        return None
    text = request_id if isinstance(request_id, str) else shown(request_id, MAX_ID_CHARS + 1)
    if len(text) > MAX_ID_CHARS:
        raise InvalidInput("id", text, f"text of at most {MAX_ID_CHARS} characters")
    return text


def _native_parameters(parameters: Mapping[str, Any], translation: Translation) -> dict[str, Any]:
    """The request's parameters as native fields. `timeout` and `priority` are Triton's own.

    Tensors and parameters are fields of the same kind, so errors name both without a prefix.
    """
    if "model" in parameters:
        raise InvalidInput("model", parameters["model"], "the one in the address alone")
    decoded = {name: _decoded(name, value) for name, value in parameters.items()}
    fields = native_fields(decoded, translation, more=("timeout", "binary_data_output"))
    binary = fields.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidInput("binary_data_output", binary, "true or false")
    timeout, priority = fields.pop("timeout", None), fields.pop("priority", None)
    if timeout is not None:
        if type(timeout) is not int or timeout < 0:
            raise InvalidInput("timeout", timeout, "microseconds, an integer from 0: no limit")
        if timeout > MAX_TIMEOUT_US:
            allowed = f"microseconds, an integer from 0, which is no limit, to {MAX_TIMEOUT_US}"
            raise InvalidInput("timeout", timeout, allowed)
        if timeout and "slo_ms" not in fields:
            fields["slo_ms"] = timeout / 1e3
            translation.note("slo_ms", "timeout", timeout, unit=" µs")
    if priority is not None:
        if type(priority) is not int or not 0 <= priority <= 2 * _TRITON_PRIORITY - 1:
            allowed = "an integer from 1, the highest, to 21; 0 is the default, as 11"
            raise InvalidInput("priority", priority, allowed)
        fields["priority"] = _TRITON_PRIORITY - priority if priority else 0
    return fields


def _by_field(tensors: Sequence[Tensor], translation: Translation) -> dict[str, Tensor]:
    """Native field → its tensor, which keeps the caller's name.

    Raises InvalidInput if one is no field, and if there are two for one field.
    """
    named: dict[str, Tensor] = {}
    for tensor in tensors:
        native = aliases().get(tensor.name, tensor.name)
        if native not in inputs():
            hint = nearest(tensor.name, inputs())
            translation.unknown("inputs", tensor.name, hint, f"one of {', '.join(inputs())}")
            continue
        if native in named:
            raise InvalidInput("inputs", tensor.name, "each field once")
        named[native] = tensor
    return named


def _decoded(name: str, value: Any) -> Any:
    """Parse a list that is sent as JSON in a text, because no datatype or parameter is a list."""
    if name not in _list_fields() or not isinstance(value, str):
        return value
    try:
        data = (value or "[]").encode()
        check_json(data, name)
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        raise InvalidInput(name, value, 'a list in JSON, such as [{"name": "striped"}]') from None


@cache
def _list_fields() -> frozenset[str]:
    """The fields whose values are lists."""
    schemas = GenerateParams.model_json_schema()["properties"]
    plain = {name: schema.get("anyOf", [schema])[0] for name, schema in schemas.items()}
    return frozenset(name for name in plain if plain[name].get("type") == "array")


def _rows(
    tensors: Mapping[str, Tensor], common: Mapping[str, Any], limit: int, translation: Translation
) -> tuple[list[GenerateParams], list[Translation]]:
    """The parameters of every row: its own part of the tensors, and the common parameters."""
    count = len(tensors["prompt"].values) if "prompt" in tensors else None
    if count is None and "prompt" not in common:
        raise InvalidInput(
            "inputs", [tensor.name for tensor in tensors.values()], "prompt among them"
        )
    count = 1 if count is None else count
    if not 1 <= count <= limit:
        raise InvalidInput("prompt", f"{count} prompts", f"1 to {limit} in one request")
    rows = [dict(common) for _ in range(count)]
    parts = [
        translation.part(suffix=f" (row {index})" if count > 1 else "") for index in range(count)
    ]
    for native, tensor in tensors.items():
        for row, part, value in zip(rows, parts, _values(native, tensor, count), strict=True):
            row[native] = value
            part.note(native, tensor.name, value)
    return [_row(fields, part) for fields, part in zip(rows, parts, strict=True)], parts


def _row(fields: Mapping[str, Any], translation: Translation) -> GenerateParams:
    try:
        return parse_params(fields, translation.rules)
    except InvalidInput as error:
        raise translation.told(error) from None


def _values(native: str, tensor: Tensor, count: int) -> list[Any]:
    """The value of each row in a field's tensor, which has one for every row or one for all."""
    size = inputs()[native][1]
    if len(tensor.values) not in (size, size * count):
        rows = f"[{count}, {size}]" if size > 1 else f"[{count}] or [{count}, 1]"
        alone = f"[1, {size}]" if size > 1 else "[1]"
        raise InvalidInput(f"{tensor.name}.shape", list(tensor.shape), f"{rows}, or {alone}")
    flat = tensor.values * (size * count // len(tensor.values))
    if size > 1:
        return [flat[i : i + size] for i in range(0, len(flat), size)]
    return [_decoded(native, value) for value in flat]


def _outputs(asked: object, binary: bool) -> list[RequestedOutput]:
    if asked is None or asked == []:
        return [RequestedOutput(name, binary) for name in DEFAULT_OUTPUTS]
    assert isinstance(asked, list)  # the envelope was checked
    requested = []
    for index, each in enumerate(asked):
        name = each.get("name") if isinstance(each, Mapping) else each
        if not isinstance(name, str) or name not in OUTPUTS or not isinstance(each, Mapping):
            raise InvalidInput(f"outputs.{index}.name", name, f"one of {', '.join(OUTPUTS)}")
        parameters = each.get("parameters") or {}
        requested.append(RequestedOutput(name, parameters.get("binary_data", binary)))
    return requested


def _check_consistent(rows: Sequence[GenerateParams], outputs: Sequence[RequestedOutput]) -> None:
    """Check that the rows' results fit into one tensor: an output has one shape."""
    numbers = {row.num_images for row in rows}
    if len(numbers) > 1:
        raise InvalidInput("num_images", sorted(numbers), "the same for every row")
    pixels = next((output for output in outputs if output.name == "pixels"), None)
    if pixels is None:
        return
    if not pixels.binary:
        raise InvalidInput("pixels", "JSON", "binary_data: they are too many for JSON")
    if len({(row.width, row.height) for row in rows}) > 1:
        raise InvalidInput("pixels", "several sizes", "rows of the same width and height")
