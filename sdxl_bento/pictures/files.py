"""The files of an image store: reading, writing, listing and removing them in any file system."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fsspec.asyn import AsyncFileSystem

from sdxl_bento.errors import ImageNotFound, SDXLError, StoreUnavailable
from sdxl_bento.pictures.listing import PictureFiles, by_id
from sdxl_bento.pictures.names import is_result

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What tells of one file, and nothing of the file system: a bad sector, its owner, a broken link.
_OF_ONE_FILE = frozenset((errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP))


class StoreFiles:
    """The files below one root. See `store` for their names."""

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")
        # Object stores have no folders, and s3fs would create a bucket in the place of one. They
        # can be told by their class: in fsspec all of them are asynchronous.
        self._has_folders = not isinstance(files, AsyncFileSystem)
        self._probe = f".check-{secrets.token_hex(8)}"

    def check(self) -> None:
        """Write, read, list and remove a small file. Raises the file system's own errors."""
        path = f"{self._root}/{self._probe}"
        self._write(self._probe, b"check")
        try:
            self._files.cat_file(path)
            self._files.ls(self._root)
        finally:
            self._files.rm_file(path)

    def probe(self) -> None:
        """Write and remove a small file. Raises the file system's own errors."""
        self._write(self._probe, b"probe")
        self._files.rm_file(f"{self._root}/{self._probe}")

    def _read(self, image_id: str, suffix: str, most: int) -> bytes:
        """The content of one of a picture's files. Raises ImageNotFound.

        Of a damaged file that is larger than `most` bytes, not much more than these are read.
        """
        # An object store refuses a range of an empty object, and its objects cannot be endless.
        end = most + 1 if self._has_folders else None
        with self._translated_errors():
            try:
                data: bytes = self._files.cat_file(f"{self._root}/{image_id}.{suffix}", end=end)
            except (FileNotFoundError, IsADirectoryError):
                raise ImageNotFound(image_id) from None
            except OSError as error:
                # Whoever asks for this picture again and again must not cut others off the store.
                if not self._has_folders or error.errno not in _OF_ONE_FILE:
                    raise
                raise ImageNotFound(image_id, hint="its file cannot be read") from error
        return data

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            try:
                self._files.pipe_file(path, data)
            except FileNotFoundError:
                if not self._has_folders:
                    raise
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(path, data)
        except Exception:
            if self._has_folders:  # half of the file may have been written
                with suppress(Exception):
                    self._files.rm_file(path)
            raise

    def _list(self) -> dict[str, PictureFiles]:
        try:
            return by_id(self._files.ls(self._root, detail=True))
        except FileNotFoundError:  # nothing was stored yet
            return {}

    def _find(self, folder: str) -> list[str]:
        """The paths of the results below a folder."""
        paths: list[str] = self._files.find(f"{self._root}/{folder}")
        return [path for path in paths if is_result(path)]

    def _remove(self, paths: Collection[str]) -> None:
        if not paths:
            return
        try:
            self._files.rm(list(paths))
        except FileNotFoundError:  # another process was quicker; some may still be there
            for path in paths:
                with suppress(FileNotFoundError):
                    self._files.rm_file(path)
        if self._has_folders:
            for folder in {path.rpartition("/")[0] for path in paths if is_result(path)}:
                with suppress(OSError):  # the folder holds newer results
                    self._files.rmdir(folder)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise errors of client libraries, which have no class in common, as StoreUnavailable."""
        try:
            yield
        except SDXLError:
            raise
        except Exception as error:
            raise StoreUnavailable from error
