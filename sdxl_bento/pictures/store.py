"""Pictures by unguessable id, in a folder or an object store that worker processes share.

Below the root::

    <id>.png            a picture; or .webp, .jpeg
    <id>.json           its metadata
    results/<key>/<id>  an empty file: this picture is the result of the key, see `cache`

An id begins with the second in which it was made, and a listing has sizes, so a sweep need not read
any file. There is no index in memory: processes see at once what others have written.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem

from sdxl_bento.errors import ImageNotFound, SDXLError, StoreUnavailable
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.pictures.listing import PictureFiles, by_id, superfluous
from sdxl_bento.pictures.names import (
    METADATA_SUFFIX,
    RESULTS,
    base_name,
    created_at,
    is_id,
    is_result,
    new_id,
)
from sdxl_bento.pictures.sweeping import Sweeper

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from sdxl_bento.params import OutputFormat

_SHARE = 8  # a sweep leaves room for an eighth of the bound, which may be written until the next


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture out of the store, with the metadata that was stored beside it."""

    image_id: str
    data: bytes
    output_format: OutputFormat
    metadata: dict[str, Any]

    @property
    def media_type(self) -> str:
        """The media type of the picture's file, such as `image/png`."""
        return MEDIA_TYPES[self.output_format]


class ImageStore:
    """The pictures below one root. Every method blocks, so call it from a thread.

    Pictures older than `ttl_s` cannot be fetched any more. Once all pictures take more than
    `max_bytes`, the oldest are removed.

    Where the file system fails, every method raises StoreUnavailable from its error.
    """

    def __init__(
        self,
        files: AbstractFileSystem,
        root: str,
        *,
        ttl_s: float,
        max_bytes: int,
        writers: int = 1,
        temporary: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            files: the file system. It must not cache listings, since other processes write, too.
            root: a path in it, below which the pictures are.
            ttl_s: for how many seconds a picture is kept.
            max_bytes: most bytes of all pictures together, whichever process wrote them.
            writers: number of processes that write here.
            temporary: whether `close` removes everything.
            clock: the current time in seconds since 1970.
        """
        self._files = files
        self._root = root.rstrip("/")
        # Object stores have no folders, and s3fs would create a bucket in the place of one. They
        # can be told by their class: in fsspec all of them are asynchronous.
        self._has_folders = not isinstance(files, AsyncFileSystem)
        self.ttl_s = ttl_s
        self._target_bytes = max_bytes - max_bytes // _SHARE
        self._temporary = temporary
        self._clock = clock
        self._sweeper = Sweeper(
            self.sweep,
            after_bytes=max_bytes // _SHARE // writers,
            after_s=ttl_s / _SHARE,
            clock=clock,
        )

    def put(self, data: bytes, output_format: OutputFormat, metadata: Mapping[str, Any]) -> str:
        """Store a picture; returns its id."""
        image_id = new_id(self._clock())
        record = {"format": output_format, "bytes": len(data), "metadata": dict(metadata)}
        with self._translated_errors():
            # The metadata is written last: a picture without it does not count as stored, so
            # nobody can find half of one.
            self._write(f"{image_id}.{output_format}", data)
            self._write(f"{image_id}.{METADATA_SUFFIX}", json.dumps(record).encode())
        self._sweeper.wrote(len(data))
        return image_id

    def get(self, image_id: str) -> StoredImage:
        """The picture. Raises ImageNotFound for an id that is unknown, evicted or too old."""
        record = self._record(image_id)
        output_format: OutputFormat = record["format"]
        data = self._read(image_id, output_format)
        return StoredImage(image_id, data, output_format, record["metadata"])

    def describe(self, image_id: str) -> dict[str, Any]:
        """The metadata of a picture, without its file. Raises ImageNotFound as `get` does."""
        record = self._record(image_id)
        return {
            "image_id": image_id,
            "format": record["format"],
            "bytes": record["bytes"],
            "created": created_at(image_id),
            **record["metadata"],
        }

    def put_result(self, key: str, image_id: str) -> None:
        """Record a stored picture as the result of `key`, 64 hexadecimal digits."""
        with self._translated_errors():
            self._write(f"{RESULTS}/{key}/{image_id}", b"")

    def get_result(self, key: str, output_format: OutputFormat) -> StoredImage | None:
        """The newest picture that is the result of `key`, without metadata; or None."""
        with self._translated_errors():
            ids = [base_name(path) for path in self._find(f"{RESULTS}/{key}")]
        for image_id in sorted(ids, key=created_at, reverse=True):
            with suppress(ImageNotFound):  # it was evicted
                data = self._read(image_id, output_format)
                return StoredImage(image_id, data, output_format, {})
        return None

    def is_ageing(self, image_id: str) -> bool:
        """Whether more than half of the time for which a picture is kept is over."""
        return self._clock() - created_at(image_id) > self.ttl_s / 2

    def sweep(self, grace_s: float = 0.0) -> None:
        """Remove pictures that are too old, then the oldest ones, until there is room.

        Metadata is removed first, and the pictures `grace_s` seconds later, so that a reader in any
        process that has just read the metadata still gets the picture. What an interrupted sweep or
        `put` leaves behind is removed by a later sweep.
        """
        self._sweeper.reset()
        with self._translated_errors():
            # Results are listed before pictures, because a result is written after its picture: so
            # a result is never taken for a dangling one while its picture is being stored.
            results = self._find(RESULTS)
            stored = self._list()
            evicted = superfluous(stored, self._target_bytes, self._expired)
            kept = stored.keys() - evicted
            dangling = [path for path in results if base_name(path) not in kept]
            metadata = [path for image_id in evicted for path in stored[image_id].metadata]
            self._remove([*dangling, *metadata])
            pictures = [path for image_id in evicted for path in stored[image_id].picture]
            if not pictures or self._sweeper.wait(grace_s):
                return
            self._remove(pictures)

    def check(self) -> None:
        """Write, read, list and remove a small file. Raises the file system's own errors."""
        name = f".check-{secrets.token_hex(8)}"
        path = f"{self._root}/{name}"
        self._write(name, b"check")
        try:
            self._files.cat_file(path)
            self._files.ls(self._root)
        finally:
            self._files.rm_file(path)

    def start_sweeping(self) -> None:
        """Sweep in a thread from now on, until `close` is called."""
        self._sweeper.start()

    def close(self) -> None:
        """Stop sweeping. Remove everything if the store is a temporary one."""
        self._sweeper.close()
        if self._temporary:
            with suppress(FileNotFoundError):
                self._files.rm(self._root, recursive=True)

    def _record(self, image_id: str) -> dict[str, Any]:
        """The content of a picture's JSON file. Raises ImageNotFound."""
        if not is_id(image_id):
            raise ImageNotFound(image_id)
        if self._expired(image_id):
            raise ImageNotFound(image_id, hint=f"pictures are kept for {self.ttl_s:g} seconds")
        try:
            record: dict[str, Any] = json.loads(self._read(image_id, METADATA_SUFFIX))
        except ValueError:  # the process that wrote it was killed
            raise ImageNotFound(image_id) from None
        return record

    def _read(self, image_id: str, suffix: str) -> bytes:
        """The content of one of a picture's files. Raises ImageNotFound."""
        if self._expired(image_id):
            raise ImageNotFound(image_id)
        with self._translated_errors():
            try:
                data: bytes = self._files.cat_file(f"{self._root}/{image_id}.{suffix}")
            except FileNotFoundError:
                raise ImageNotFound(image_id) from None
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

    def _expired(self, image_id: str) -> bool:
        return self._clock() - created_at(image_id) > self.ttl_s

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise errors of client libraries, which have no class in common, as StoreUnavailable."""
        try:
            yield
        except SDXLError:
            raise
        except Exception as error:
            raise StoreUnavailable from error
