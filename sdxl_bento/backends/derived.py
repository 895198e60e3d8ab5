"""Files that a runtime derives from compiled parts on this machine and reads at the next start.

They are no part of the export, so its manifest cannot vouch for them. Their digests are kept beside
them instead, and are written when the runtime has written its files. A file that has changed since
then, or that has no digest because its writer was killed, is removed, so that the runtime derives
it again. Only one process at a time uses a folder, so that none takes another's unfinished file for
such a one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.integrity import THREADS, digest

logger = logging.getLogger(f"bentoml.{__name__}")
NOTES: Final = "digests.json"
_LOCK: Final = ".lock"


class _Stamp(NamedTuple):
    """By which a file is known again without being read."""

    inode: int
    size: int
    changed_ns: int


_CHECKED: dict[Path, tuple[_Stamp, str]] = {}  # what this process has read already


@contextmanager
def derived_files(folder: Path, *, verify: bool) -> Iterator[None]:
    """Let a runtime read and write `folder`, and note the digests of what it has written.

    `verify`: remove damaged files before.

    Raises:
        ConfigurationError: a damaged file cannot be removed.
    """
    with _alone(folder):
        if verify:
            remove_damaged(folder)
        before = {path: _stamp(path) for path in _files(folder)}
        yield
        written = [path for path in _files(folder) if _stamp(path) != before.get(path)]
        _note(written, folder)


def remove_damaged(folder: Path) -> list[str]:
    """Remove what is not as it was noted; returns the names of files that have changed.

    Raises:
        ConfigurationError: a damaged file cannot be removed.
    """
    if not (folder / NOTES).exists() and not os.access(folder, os.W_OK):
        return []  # an earlier export, mounted read-only, has no notes
    noted, changed = _notes(folder), []
    for path, actual in _digests(_files(folder)).items():
        if noted.get(path.name) == actual:
            continue
        if path.name in noted:
            changed.append(path.name)
        reason = "has changed since it was written" if path.name in noted else "has no digest"
        logger.warning("%s %s; it is derived again", path, reason)
        try:
            path.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"{path} {reason} and cannot be removed ({error.strerror}); remove it"
            ) from error
    return changed


def _note(written: Sequence[Path], folder: Path) -> None:
    """Write down the digests of files. Without them, the next start derives the files again."""
    if not written:
        return
    there = {path.name for path in _files(folder)}
    notes = {name: sha256 for name, sha256 in _notes(folder).items() if name in there}
    notes |= {path.name: sha256 for path, sha256 in _digests(written).items()}
    draft = folder / f".{NOTES}"
    with suppress(OSError):
        draft.write_text(json.dumps(notes, indent=1, sort_keys=True))
        draft.replace(folder / NOTES)


def _notes(folder: Path) -> Mapping[str, str]:
    try:
        notes = json.loads((folder / NOTES).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _files(folder: Path) -> list[Path]:
    """The files in `folder`, but for the notes and hidden files."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError:
        return []
    return [path for path in paths if path.name != NOTES and not path.name.startswith(".")]


def _digests(paths: Sequence[Path]) -> dict[Path, str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> str:
    """The digest of a file, which is read once in this process as long as it does not change."""
    try:
        stamp = _stamp(path)
        known = _CHECKED.get(path)
        if known is None or known[0] != stamp:
            known = _CHECKED[path] = stamp, digest(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return known[1]


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return _Stamp(status.st_ino, status.st_size, status.st_ctime_ns)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process uses the folder. Some network file systems have no locks."""
    try:
        lock = (folder / _LOCK).open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
