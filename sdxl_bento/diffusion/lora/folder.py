"""Which adapters a folder holds, and what in it is none. Reads no file's content."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from sdxl_bento.errors import readable

SUFFIX = ".safetensors"
Stamp = tuple[int, int, int]
MOST_CHARS = 200  # of a name, as in requests
MOST_FILES = 10_000
MOST_LEVELS = 8


@dataclass(frozen=True)
class LoraFile:
    """A file as it was when it was looked at. `stamp` changes when the file does."""

    path: Path
    stamp: Stamp

    @classmethod
    def of(cls, path: Path) -> LoraFile:
        """Raises OSError if there is no such file, or if it is no file but a folder or the like."""
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return cls(path, _stamp(status))

    @property
    def size_bytes(self) -> int:
        return self.stamp[1]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        files: name of an adapter → its file. The name is the path below the folder, with `/`,
            without the ending.
        passed_over: path below the folder → why it is not among the files.
    """

    files: Mapping[str, LoraFile] = field(default_factory=dict)
    passed_over: Mapping[str, str] = field(default_factory=dict)


def stamp_of(path: Path) -> Stamp:
    """What changes when the file does: its time of change in ns, its size in bytes, its inode."""
    return _stamp(path.stat())


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def look(folder: Path) -> Found:
    """Every .safetensors file of a folder and of the folders in it, however the ending is written.

    Links are followed. Hidden files and folders, whose names begin with a dot, are not looked at.
    """
    files: dict[str, LoraFile] = {}
    passed_over: dict[str, str] = {}
    if not _is(folder, S_ISDIR):
        return Found({}, {".": "there is no such folder"})
    for path in _walk(folder, passed_over):
        below = path.relative_to(folder).as_posix()
        if len(files) >= MOST_FILES:
            passed_over["…"] = f"more than {MOST_FILES} files"
            break
        name = below[: -len(SUFFIX)]
        if reason := _unusable(name, files):
            passed_over[_shown(path, folder)] = reason
            continue
        try:
            files[name] = LoraFile.of(path)
        except OSError as error:
            passed_over[_shown(path, folder)] = os.strerror(error.errno or 0)
    return Found(files, passed_over)


def _unusable(name: str, files: Mapping[str, LoraFile]) -> str:
    if not name.isprintable():  # which holds for what is not UTF-8, too
        return "its name has characters that cannot be shown"
    if len(name) > MOST_CHARS:
        return f"its name is longer than {MOST_CHARS} characters"
    if name in files:
        return f"{files[name].path.name} has the same name"
    return ""


def _walk(folder: Path, passed_over: dict[str, str]) -> Iterator[Path]:
    """The files with the ending, those of a folder before those of the folders in it."""

    def failed(error: OSError) -> None:
        passed_over[_shown(error.filename, folder)] = os.strerror(error.errno or 0)

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(parent)
        level = len(Path(parent).relative_to(folder).parts)
        if level > MOST_LEVELS:
            passed_over[_shown(parent, folder)] = f"it is deeper than {MOST_LEVELS} folders"
        if real in seen or level > MOST_LEVELS:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names, key=lambda name: (not name.endswith(SUFFIX), name)):
            if name.lower().endswith(SUFFIX) and not name.startswith("."):
                path = Path(parent, name)
                if _is(path, S_ISREG):
                    yield path
                else:
                    reason = "it is no file, a broken link, or may not be read"
                    passed_over[_shown(path, folder)] = reason


def _shown(path: str | Path, folder: Path) -> str:
    return readable(os.path.relpath(path, folder), 1000)


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether it is of a kind; False where one may not know."""
    try:
        return kind(path.stat().st_mode)
    except OSError:
        return False
