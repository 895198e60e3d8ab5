"""Reading a safetensors file that others may be writing: its header first, then what is wanted.

The file is read, not mapped into memory: a mapped file that somebody cuts short ends the process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, deserialize

from sdxl_bento.diffusion.lora.folder import Stamp

MOST_HEADER_BYTES = 32 << 20  # kohya's notes of a training take a few
_LENGTH_BYTES = 8

# The types of numbers that factors and alphas may have, by safetensors' names.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_TYPES = FLOATS | INTEGERS


class UnreadableFile(Exception):
    """The file is no safetensors file, or not the whole of one; the message says which."""


@dataclass(frozen=True)
class Entry:
    """What the header says of a tensor. `dtype` is safetensors' name of it."""

    dtype: str
    shape: tuple[int, ...]


class TensorFile:
    """An open safetensors file. `entries`: its tensors; `metadata`: the header's own texts."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the header. Raises OSError, UnreadableFile."""
        self._file = file
        status = os.fstat(file.fileno())
        self.stamp: Stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        self._start = _read_start(file, status.st_size)
        header = _parse(self._start[_LENGTH_BYTES:])
        notes = header.pop("__metadata__", None) or {}
        self.metadata: Mapping[str, str] = {
            key: value for key, value in notes.items() if isinstance(value, str)
        }
        self.entries: Mapping[str, Entry] = {
            key: Entry(str(each["dtype"]), tuple(each["shape"])) for key, each in header.items()
        }

    def read(self, wanted: Collection[str]) -> tuple[dict[str, torch.Tensor], str]:
        """Copies of some tensors, which are of `FLOATS` or `INTEGERS`, and the file's SHA-256.

        Raises OSError, UnreadableFile.
        """
        data = self._start + self._file.read()
        try:
            content = deserialize(data)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise UnreadableFile(f"it is cut short or is not safetensors, {error}") from error
        tensors = {name: _tensor(each) for name, each in content if name in wanted}
        if any(
            name not in tensors or tuple(tensors[name].shape) != self.entries[name].shape
            for name in wanted
        ):
            raise UnreadableFile("its header names a tensor twice")
        return tensors, hashlib.sha256(data).hexdigest()


def fingerprint_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_start(file: BinaryIO, size: int) -> bytes:
    start = file.read(_LENGTH_BYTES + 1)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    begins = start[_LENGTH_BYTES:] == b"{"
    if not begins and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise UnreadableFile("it is a pickle, which can run code; only safetensors are read")
    if not begins or length > size - _LENGTH_BYTES:
        raise UnreadableFile("it is cut short or is not safetensors")
    if length > MOST_HEADER_BYTES:
        raise UnreadableFile(f"its header has {length} bytes, more than {MOST_HEADER_BYTES}")
    return start + file.read(length - 1)


def _parse(header: bytes) -> dict[str, dict[str, Any]]:
    """The header's object, whose entries look as they should. `deserialize` checks the rest."""
    try:
        content = json.loads(header)
        for key, each in content.items():
            sides = [] if key == "__metadata__" else each["shape"]
            if not isinstance(each, dict) or not all(type(side) is int for side in sides):
                raise TypeError(key)
            if key != "__metadata__":
                each["dtype"]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"its header is broken, {error!r:.80}") from error
    return cast("dict[str, dict[str, Any]]", content)


def _tensor(each: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape, data = _TYPES[each["dtype"]], each["shape"], each["data"]
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
