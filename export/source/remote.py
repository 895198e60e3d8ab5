"""Files on another machine, and how one of them gets here whole.

A file is written to `<name>.part` and renamed when its size and hash are right. Beside it lies
`<name>.json`, which says what version of the file the bytes belong to, so an interrupted download
goes on where it stopped, and a finished one is not repeated while the source stays the same.
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
"""Called with the bytes that have come since the last call; less than zero where some are lost."""


class Interrupted(Exception):
    """The connection broke; what has come so far is good, and the rest can be asked for."""


@dataclass(frozen=True)
class Hash:
    """What a source says of a file's content. `algorithm` as `hashlib` names it."""

    algorithm: str
    hex: str

    @classmethod
    def from_base64(cls, algorithm: str, text: str) -> Hash:
        """As object stores write hashes."""
        return cls(algorithm, base64.b64decode(text).hex())


@dataclass(frozen=True)
class RemoteFile:
    """A file of a source as it is now.

    `name` is its path below the source, `where` what messages call it. `version` changes when the
    content does (an ETag, a date); None: the source says nothing of that. `size` is in bytes;
    None: unknown.
    """

    name: str
    where: str
    size: int | None
    version: str | None
    hash: Hash | None = None
    resumable: bool = True


class Remote(Protocol):
    """A place that files can be read from. `name` is for messages and holds no credentials."""

    @property
    def name(self) -> str: ...

    def stat(self, name: str) -> RemoteFile:
        """The file as it is now. Raises `SourceError` if there is none or it is out of reach."""

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes]:
        """The content from `offset` on.

        Raises `Interrupted` if the connection breaks, `SourceError` if the file is not the same
        any more.
        """


def changed(where: str) -> SourceError:
    """The refusal of a file that was replaced while it was read."""
    return SourceError(where, "another content than when the download began", "a file that stays")


def fetch(remote: Remote, file: RemoteFile, folder: Path, advance: Advance) -> Path:
    """The file in `folder`, downloaded unless it is there already.

    Raises `SourceError` if it cannot be read, changes meanwhile, or is not what its hash says.
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
    """Append to `part` what it lacks, again after each interruption that brought something."""
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
    """SHA-256 of a finished download. Raises `SourceError` and removes it if it is not right."""
    size = part.stat().st_size
    found = ""
    if file.size is not None and size != file.size:
        found = f"{size:,} bytes instead of {file.size:,}"
    sha256 = weights.digest(part)
    if file.hash is not None and not found:
        algorithm = file.hash.algorithm
        actual = sha256 if algorithm == "sha256" else _digest(part, algorithm)
        if actual != file.hash.hex:
            found = f"{algorithm} {actual} instead of {file.hash.hex}"
    if found:
        part.unlink()
        raise SourceError(file.where, found, "the file that the source promises; fetch it again")
    return sha256


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
