"""Files on another machine, and their download.

A file is written to `<name>.part` and renamed when its size and hash are right. Beside it,
`<name>.json` records the version of the file that the bytes belong to. So an interrupted download
is resumed where it stopped, and a finished one is not repeated while the source does not change.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from export.errors import ExportError, SourceError
from export.model import weights

ATTEMPTS = 6  # in a row without one new byte
PAUSE_S = 0.25  # before the second attempt; doubles with each

Advance = Callable[[int], None]
"""Called with the bytes that have arrived since the last call; negative if some were lost."""


class Interrupted(Exception):
    """The connection broke. The bytes that have arrived are good, and the rest can be requested."""


@dataclass(frozen=True)
class Hash:
    """A hash of a file's content, as its source states it. `algorithm` is a name of `hashlib`."""

    algorithm: str
    hex: str

    @classmethod
    def from_base64(cls, algorithm: str, text: str) -> Hash:
        """A hash in base64, as object stores state it."""
        return cls(algorithm, base64.b64decode(text).hex())


@dataclass(frozen=True)
class RemoteFile:
    """The present state of a file at its source.

    Attributes:
        name: its path below the source.
        where: its name in messages.
        size: in bytes; None if it is not known.
        version: an ETag or a date, which changes with the content; None if the source states none.
        hash: of the content; None if the source states none.
        resumable: whether a download can continue in the middle.
    """

    name: str
    where: str
    size: int | None
    version: str | None
    hash: Hash | None = None
    resumable: bool = True


class Remote(Protocol):
    """A place from which files can be read. `name` is for messages and holds no credentials."""

    @property
    def name(self) -> str: ...

    def stat(self, name: str) -> RemoteFile:
        """The present state of a file. Raises `SourceError` if it is missing or out of reach."""

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes]:
        """The content from `offset` on.

        Raises `Interrupted` if the connection breaks, `SourceError` if the file has changed.
        """


def changed(where: str) -> SourceError:
    """The error for a file that was replaced while it was read."""
    return SourceError(where, "another content than when the download began", "a file that stays")


def fetch(remote: Remote, file: RemoteFile, folder: Path, advance: Advance) -> Path:
    """The file in `folder`, downloaded unless it is there already.

    Raises `SourceError` if it cannot be read, changes meanwhile, or does not match its hash.
    """
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part, note = (target.with_name(target.name + end) for end in (".part", ".json"))
    known = _read_note(note)
    same = (known.get("version"), known.get("size")) == (file.version, file.size)
    if not same or file.version is None:
        known = {}
        part.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    if target.is_file() and known.get("sha256") == weights.digest(target):
        advance(target.stat().st_size)
        return target
    target.unlink(missing_ok=True)
    note.write_text(json.dumps({"version": file.version, "size": file.size}))
    if not file.resumable:
        part.unlink(missing_ok=True)
    _check_space(folder, file, part)
    _download(remote, file, part, advance)
    sha256 = _check(file, part)
    part.replace(target)
    note.write_text(json.dumps({"version": file.version, "size": file.size, "sha256": sha256}))
    return target


def _read_note(note: Path) -> dict[str, object]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_space(folder: Path, file: RemoteFile, part: Path) -> None:
    needed = (file.size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed to fetch {file.name}"
        )


def _download(remote: Remote, file: RemoteFile, part: Path, advance: Advance) -> None:
    """Append the missing bytes to `part`.

    An interrupted download is continued, unless several attempts in a row bring no new bytes.
    """
    part.touch()
    have = part.stat().st_size
    advance(have)
    failures = 0
    while file.size is None or have < file.size:
        before = have
        try:
            with part.open("ab") as writer, closing(remote.read(file, have)) as chunks:
                for chunk in chunks:
                    writer.write(chunk)
                    have += len(chunk)
                    advance(len(chunk))
            if file.size is None:
                return
            if have < file.size:
                raise Interrupted(f"it ended after {have:,} of {file.size:,} bytes")
        except Interrupted as error:
            failures = 1 if have > before else failures + 1
            if failures == ATTEMPTS:
                raise SourceError(
                    file.where, f"a connection that breaks ({error}) after {have:,} bytes",
                    "a better connection; the next run goes on from there",
                ) from error  # fmt: skip
            if not file.resumable:
                advance(-have)
                part.unlink(missing_ok=True)
                have = 0
            time.sleep(PAUSE_S * 2 ** (failures - 1))


def _check(file: RemoteFile, part: Path) -> str:
    """SHA-256 of a finished download. If it is wrong, it is removed and `SourceError` is raised."""
    size = part.stat().st_size
    fault = ""
    if file.size is not None and size != file.size:
        fault = f"{size:,} bytes instead of {file.size:,}"
    sha256 = weights.digest(part)
    if file.hash is not None and not fault:
        algorithm = file.hash.algorithm
        actual = sha256 if algorithm == "sha256" else _digest(part, algorithm)
        if actual != file.hash.hex:
            fault = f"{algorithm} {actual} instead of {file.hash.hex}"
    if fault:
        part.unlink()
        raise SourceError(file.where, fault, "the file that the source promises; fetch it again")
    return sha256


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
