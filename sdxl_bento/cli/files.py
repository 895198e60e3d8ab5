"""Writes pictures to files: each completely or not at all, replacing none unless told to."""

from __future__ import annotations

import mimetypes
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from sdxl_bento.cli.failures import ExitCode, Failure

_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
_SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
_NAME_CHARS = 48
STDOUT = "-"


class Target:
    """Where the pictures of one call go: `--out`."""

    def __init__(self, out: str | None, *, force: bool = False) -> None:
        self.to_stdout = out == STDOUT
        self._force = force
        path = Path(out or ".").expanduser()
        is_folder = out is None or out.endswith(("/", os.sep)) or path.is_dir()
        self._folder = path if is_folder else path.parent
        self._file = None if is_folder else path

    def format(self, asked: object) -> object:
        """The picture's format: as asked for, or by the ending of the file's name.

        Raises BadParameter if these two differ, or if the name is that of another kind of picture.
        """
        suffix = self._file.suffix.lower() if self._file is not None else ""
        named = _FORMATS.get(suffix)
        kind = mimetypes.guess_type(f"picture{suffix}")[0] or ""
        if named is None and kind.startswith("image/"):
            raise typer.BadParameter(
                f"{self._file} ends in {suffix}, allowed: {', '.join(_FORMATS)}", param_hint="--out"
            )
        if asked is not None and named is not None and asked != named:
            raise typer.BadParameter(
                f"{asked!r} does not go with --out {self._file}", param_hint="--format"
            )
        return asked or named

    def prepare(self) -> None:
        """Make the folder and check that it can be written to, before anything is drawn.

        Raises Failure if it cannot, BadParameter if stdout is a terminal.
        """
        if self.to_stdout:
            if sys.stdout.isatty():
                raise typer.BadParameter("stdout is a terminal", param_hint="--out")
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise _unwritable(self._folder, PermissionError(13, os.strerror(13)))

    def write(
        self, files: Sequence[bytes], images: Sequence[dict[str, Any]], prompt: str
    ) -> list[Path]:
        """Write the pictures, and return their paths. Raises Failure.

        Args:
            files: the encoded pictures.
            images: for each, its `seed` and `format`.
            prompt: the files are named for it where `--out` names none.
        """
        if self.to_stdout:
            sys.stdout.buffer.write(files[0])
            sys.stdout.buffer.flush()
            return []
        written = []
        for index, (data, image) in enumerate(zip(files, images, strict=True)):
            path = self._name(index, len(files), image, prompt)
            try:
                written.append(replace(path, data) if self._force else create(path, data))
            except OSError as error:
                raise _unwritable(path, error) from None
        return written

    def _name(self, index: int, count: int, image: dict[str, Any], prompt: str) -> Path:
        if self._file is None:
            suffix = _SUFFIXES.get(image["format"], f".{image['format']}")
            return self._folder / f"{slug(prompt)}-{image['seed']}{suffix}"
        if count == 1:
            return self._file
        return self._file.with_name(f"{self._file.stem}-{index + 1}{self._file.suffix}")


def slug(prompt: str) -> str:
    """The first words of a prompt as a file name: letters and digits of any script, and dashes."""
    words = re.findall(r"\w+", prompt.lower().replace("_", " "))
    name = ""
    for word in words:
        if name and len(name) + 1 + len(word) > _NAME_CHARS:
            break
        name = f"{name}-{word}" if name else word[:_NAME_CHARS]
    return name or "picture"


def create(path: Path, data: bytes) -> Path:
    """Write a new file under the first free name of `path`, `path-2`, …, and return its path."""
    draft = _draft(path, data)
    try:
        return next(name for name in _numbered(path) if _claim(name, draft))
    finally:
        draft.unlink(missing_ok=True)


def _claim(name: Path, draft: Path) -> bool:
    """Give the draft this name. Returns False if something else already has it."""
    try:
        os.link(draft, name)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: reserve the name by an empty file
        try:
            name.open("xb").close()
        except FileExistsError:
            return False
        draft.replace(name)
    return True


def replace(path: Path, data: bytes) -> Path:
    """Write a file, replacing the one that may be there."""
    draft = _draft(path, data)
    try:
        return draft.replace(path)
    except OSError:
        draft.unlink()
        raise


def _draft(path: Path, data: bytes) -> Path:
    """Write a temporary file beside `path` and flush it to the disk."""
    draft = path.with_name(f".{path.name[:_NAME_CHARS]}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    return draft


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _unwritable(path: Path, error: OSError) -> Failure:
    message = f"{path}: cannot be written ({error.strerror or error})"
    return Failure.of(ExitCode.FAILED, "unwritable_file", message)
