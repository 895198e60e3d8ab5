"""Tensors as the Open Inference Protocol sends them: in the JSON, or behind it as raw bytes.

Raw bytes are little-endian and row-major, in the order of the tensors in the JSON. An element of
BYTES is its length in four bytes, followed by its bytes. See KServe's "Binary Tensor Data
Extension".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from sdxl_bento.errors import InvalidInput
from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.protocols.http.errors import MalformedBody

HEADER_LENGTH = "Inference-Header-Content-Length"
_DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
DATATYPES = ("BYTES", *_DTYPES)
# Far more than the rows of any call need, and few enough to be read at once.
MAX_INPUTS = 64
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 16_384
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {"b": (bool,), "f": (int, float)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`values` are plain Python objects, row-major: str of BYTES, bool, int or float."""

    name: str
    shape: tuple[int, ...]
    values: list[Any]


class TensorHeader(TypedDict):
    """A tensor in the JSON of an answer. `data` is missing if it follows the JSON as raw bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to answer with. `data` is a list of bytes for BYTES, and an array otherwise.

    JSON cannot represent arbitrary bytes, so they are encoded in base64 unless `is_text`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[bytes] | np.ndarray[Any, Any]
    is_text: bool = field(default=False)

    def as_json(self) -> TensorHeader:
        """The tensor with its data inside."""
        if isinstance(self.data, np.ndarray):
            return {**self._header(), "data": self.data.ravel().tolist()}
        if self.is_text:
            return {**self._header(), "data": [each.decode() for each in self.data]}
        data = [base64_of(each) for each in self.data]
        return {**self._header(), "data": data, "parameters": {"content_type": "base64"}}

    def as_binary(self) -> tuple[TensorHeader, bytes]:
        """The tensor without its data, and the data."""
        if isinstance(self.data, np.ndarray):
            raw = self.data.tobytes()
        else:
            raw = b"".join(struct.pack("<I", len(each)) + each for each in self.data)
        return {**self._header(), "parameters": {"binary_data_size": len(raw)}}, raw

    def _header(self) -> TensorHeader:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a request and the raw bytes behind it. Raises MalformedBody."""
    if header_length is None:
        return body, b""
    digits = len(header_length) <= 20 and header_length.isascii() and header_length.isdigit()
    if not digits or int(header_length) > len(body):
        allowed = f"the bytes of the JSON, which are at most the {len(body)} of the body"
        raise MalformedBody(HEADER_LENGTH, header_length, allowed)
    return body[: int(header_length)], body[int(header_length) :]


def read_tensors(inputs: object, raw: bytes) -> list[Tensor]:
    """The `inputs` of a request. Raises InvalidInput, MalformedBody."""
    if not isinstance(inputs, list):
        raise InvalidInput("inputs", inputs, "a list of tensors")
    if len(inputs) > MAX_INPUTS:
        raise InvalidInput("inputs", f"{len(inputs)} tensors", f"at most {MAX_INPUTS}")
    tensors = []
    place = 0  # of the raw bytes that have not been read
    for index, each in enumerate(inputs):
        tensor, place = _read(each, raw, place, f"inputs.{index}")
        tensors.append(tensor)
    if place < len(raw):
        allowed = "as many bytes as the binary_data_size of the inputs say"
        raise MalformedBody("body", f"{len(raw) - place} bytes too many", allowed)
    return tensors


def _read(tensor: object, raw: bytes, begin: int, place: str) -> tuple[Tensor, int]:
    """One input, and where the raw bytes that follow its own begin."""
    if not isinstance(tensor, Mapping) or not isinstance(tensor.get("name"), str):
        raise InvalidInput(place, tensor, "an object with name, shape, datatype and data")
    name, datatype = tensor["name"], tensor.get("datatype")
    if datatype not in DATATYPES:
        raise InvalidInput(f"{name}.datatype", datatype, f"one of {', '.join(DATATYPES)}")
    shape = _shape(name, tensor.get("shape"))
    parameters = tensor.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InvalidInput(f"{name}.parameters", parameters, "an object")
    size = parameters.get("binary_data_size")
    if size is None:
        values = list(_flat(tensor.get("data"))) if "data" in tensor else []
        values = _checked(name, datatype, values)
        end = begin
    else:
        left = len(raw) - begin
        if type(size) is not int or not 0 <= size <= left:
            allowed = f"an integer from 0 to {left}, the bytes that are left"
            raise MalformedBody(f"{name}.binary_data_size", size, allowed)
        end = begin + size
        values = _unpacked(name, datatype, raw[begin:end])
    if len(values) != math.prod(shape):
        allowed = f"{math.prod(shape)}, as the shape {list(shape)} says"
        raise InvalidInput(f"{name}.data", f"{len(values)} elements", allowed)
    return Tensor(name, shape, values), end


def _shape(name: str, shape: object) -> tuple[int, ...]:
    """A shape within the bounds, which are checked before it is multiplied."""
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InvalidInput(f"{name}.shape", shape, "a list of integers from 0")
    if len(shape) > MAX_DIMENSIONS:
        allowed = f"at most {MAX_DIMENSIONS} dimensions"
        raise InvalidInput(f"{name}.shape", f"{len(shape)} dimensions", allowed)
    if math.prod(shape) > MAX_ELEMENTS:
        raise InvalidInput(f"{name}.shape", shape, f"at most {MAX_ELEMENTS} elements")
    return tuple(shape)


def _flat(data: object) -> Iterator[Any]:
    if isinstance(data, list):
        for item in data:
            yield from _flat(item)
    else:
        yield data


def _checked(name: str, datatype: str, values: list[Any]) -> list[Any]:
    """The elements from the JSON. Raises InvalidInput if one is not of the datatype."""
    types = (str,) if datatype == "BYTES" else _JSON_TYPES.get(_DTYPES[datatype].kind, (int,))
    for value in values:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise InvalidInput(f"{name}.data", value, f"elements of {datatype}")
    return values


def _unpacked(name: str, datatype: str, raw: bytes) -> list[Any]:
    """The elements in raw bytes. Raises MalformedBody, InvalidInput."""
    if datatype == "BYTES":
        return list(_texts(name, raw))
    dtype = _DTYPES[datatype]
    if len(raw) % dtype.itemsize:
        allowed = f"a multiple of {dtype.itemsize} bytes"
        raise MalformedBody(f"{name}.binary_data_size", len(raw), allowed)
    _check_count(name, len(raw) // dtype.itemsize)
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def _texts(name: str, raw: bytes) -> Iterator[str]:
    place = count = 0
    while place < len(raw):
        length = int.from_bytes(raw[place : place + 4], "little")
        element = raw[place + 4 : place + 4 + length]
        if len(element) != length:
            allowed = "elements of BYTES, each its length in four bytes, then itself"
            raise MalformedBody(f"{name}.data", f"{len(element)} of {length} bytes", allowed)
        place += 4 + length
        count += 1
        _check_count(name, count)
        try:
            yield element.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"{name}.data", element, "text in UTF-8") from None


def _check_count(name: str, count: int) -> None:
    if count > MAX_ELEMENTS:
        shown = f"over {MAX_ELEMENTS} elements"
        raise InvalidInput(f"{name}.data", shown, f"at most {MAX_ELEMENTS} elements")
