"""Pictures by unguessable id, in a folder or an object store that worker processes share.

Below the root::

    <id>.png            a picture; or .webp, .jpeg
    <id>.json           what is known of it
    results/<key>/<id>  that this picture is the result of a key, see `result_cache`

An id begins with the second in which it was made, and a listing has sizes. So a sweep reads no
file: what it needs is in the names. Nothing is indexed in memory.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem

from sdxl_bento.errors import ImageNotFound, SDXLError, StoreUnavailable
from sdxl_bento.pictures.encode import MEDIA_TYPES

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from sdxl_bento.params import OutputFormat

# A child of BentoML's logger, because only those show INFO under `bentoml serve`.
logger = logging.getLogger(f"bentoml.{__name__}")

_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_FILE = re.compile(rf"({_ID.pattern})\.(json|{'|'.join(MEDIA_TYPES)})")
_KEY = re.compile(r"[0-9a-f]{64}")
_RESULTS = "results"
_SHARE = 8  # a sweep leaves room for an eighth of the bound, which may be written until the next
_SWEEP_EVERY_S = 30.0
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture out of the store, with what was noted when it went in.

    `created`: seconds since 1970.
    """

    image_id: str
    data: bytes
    output_format: OutputFormat
    created: float
    metadata: dict[str, Any]

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.output_format]


@dataclass
class _Stored:
    """The files of one id, and their bytes."""

    note: list[str] = field(default_factory=list)
    picture: list[str] = field(default_factory=list)
    size: int = 0


class ImageStore:
    """The pictures below one root. Every method blocks: call them from a thread.

    Pictures older than `ttl_s` are gone. Once there are more than `max_bytes`, the oldest go.

    Raises StoreUnavailable, from the file system's own error, where that fails.
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
            files: its listings must not be cached, other processes write as well.
            root: a path in it.
            ttl_s: seconds that a picture is kept.
            max_bytes: of all pictures together, of all processes.
            writers: processes that write here, as far as is known.
            temporary: `close` removes everything.
            clock: seconds since 1970.
        """
        self._files = files
        self._root = root.rstrip("/")
        # Object stores have none; s3fs would make a bucket. All of them are asynchronous in fsspec.
        self._has_folders = not isinstance(files, AsyncFileSystem)
        self.ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._sweep_at_bytes = max_bytes // _SHARE // writers
        self._temporary = temporary
        self._clock = clock
        self._lock = threading.Lock()
        self._unswept = 0
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._sweeper: threading.Thread | None = None

    def put(self, data: bytes, output_format: OutputFormat, metadata: Mapping[str, Any]) -> str:
        """Keep a picture; returns its id."""
        image_id = _new_id(self._clock())
        note = {"format": output_format, "bytes": len(data), "metadata": dict(metadata)}
        with self._reported():
            # The note goes last: a picture without one has not been stored.
            self._write(f"{image_id}.{output_format}", data)
            self._write(f"{image_id}.json", json.dumps(note).encode())
        with self._lock:
            self._unswept += len(data)
            if self._unswept >= self._sweep_at_bytes:
                self._wanted.set()
        return image_id

    def get(self, image_id: str) -> StoredImage:
        """The picture. Raises ImageNotFound for an id that is unknown, evicted or too old."""
        note = self._note(image_id)
        output_format: OutputFormat = note["format"]
        data = self._read(image_id, output_format)
        return StoredImage(image_id, data, output_format, created_at(image_id), note["metadata"])

    def describe(self, image_id: str) -> dict[str, Any]:
        """What is known of a picture, without it. Raises ImageNotFound as `get` does."""
        note = self._note(image_id)
        about = {"image_id": image_id, "format": note["format"], "bytes": note["bytes"]}
        return {**about, "created": created_at(image_id), **note["metadata"]}

    def put_result(self, key: str, image_id: str) -> None:
        """Note that a stored picture is the result of `key`, 64 hexadecimal digits."""
        with self._reported():
            self._write(f"{_RESULTS}/{key}/{image_id}", b"")

    def get_result(self, key: str, output_format: OutputFormat) -> StoredImage | None:
        """The newest picture that is the result of `key`, without metadata; or None."""
        with self._reported():
            names = [path.rpartition("/")[2] for path in self._find(f"{_RESULTS}/{key}")]
        for image_id in sorted(filter(_ID.fullmatch, names), key=created_at, reverse=True):
            with suppress(ImageNotFound):  # it was evicted
                data = self._read(image_id, output_format)
                return StoredImage(image_id, data, output_format, created_at(image_id), {})
        return None

    def is_ageing(self, image_id: str) -> bool:
        """Whether half of a picture's time is over."""
        return self._clock() - created_at(image_id) > self.ttl_s / 2

    def sweep(self, grace_s: float = 0.0) -> None:
        """Remove what is too old, then the oldest, until there is room.

        Notes go first, and pictures `grace_s` seconds later, so that whoever has read a note in
        the meantime, in any process, still gets its picture. What an interrupted sweep or `put`
        leaves behind is found by the next.
        """
        with self._lock:
            self._unswept = 0
        with self._reported():
            # Before the pictures are listed, so that a result whose picture is not there has none.
            results = self._find(_RESULTS)
            stored = self._list()
            gone = self._superfluous(stored)
            kept = stored.keys() - gone
            dangling = [path for path in results if path.rpartition("/")[2] not in kept]
            self._remove([*dangling, *(path for each in gone for path in stored[each].note)])
            pictures = [path for each in gone for path in stored[each].picture]
            if not pictures or self._closed.wait(grace_s):
                return
            self._remove(pictures)

    def check(self) -> None:
        """Write, read, list and remove a small file. What fails is raised as it is."""
        name = f".check-{secrets.token_hex(8)}"
        path = f"{self._root}/{name}"
        self._write(name, b"check")
        try:
            self._files.cat_file(path)
            self._files.ls(self._root)
        finally:
            self._files.rm_file(path)

    def start_sweeping(self) -> None:
        """Sweep in a thread from now on: at once, whenever much was written, and as time goes."""
        self._sweeper = threading.Thread(target=self._sweep_on, name="sdxl-sweep", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        """Stop sweeping. Remove everything, if it was only lent for the life of this process."""
        self._closed.set()
        self._wanted.set()
        if self._sweeper is not None:
            self._sweeper.join(_GRACE_S)
        if self._temporary:
            with suppress(FileNotFoundError):
                self._files.rm(self._root, recursive=True)

    def _sweep_on(self) -> None:
        while not self._closed.is_set():
            self._wanted.clear()
            swept = self._clock()
            try:
                self.sweep(_GRACE_S)
            except StoreUnavailable as error:
                logger.warning("the image store could not be swept: %s", error.__cause__)
            while not (self._closed.is_set() or self._wanted.wait(_SWEEP_EVERY_S)):
                if self._unswept or self._clock() - swept > self.ttl_s / _SHARE:
                    break

    def _superfluous(self, stored: Mapping[str, _Stored]) -> set[str]:
        total = sum(each.size for each in stored.values())
        target = self._max_bytes - self._max_bytes // _SHARE
        gone = set()
        for image_id in sorted(stored, key=created_at):
            if total <= target and not self._expired(image_id):
                break
            gone.add(image_id)
            total -= stored[image_id].size
        return gone

    def _note(self, image_id: str) -> dict[str, Any]:
        if not _ID.fullmatch(image_id):
            raise ImageNotFound(image_id)
        if self._expired(image_id):
            raise ImageNotFound(image_id, hint=f"pictures are kept for {self.ttl_s:g} seconds")
        try:
            note: dict[str, Any] = json.loads(self._read(image_id, "json"))
        except ValueError:  # whoever wrote it was killed
            raise ImageNotFound(image_id) from None
        return note

    def _read(self, image_id: str, kind: str) -> bytes:
        """Raises ImageNotFound."""
        if self._expired(image_id):
            raise ImageNotFound(image_id)
        with self._reported():
            try:
                data: bytes = self._files.cat_file(f"{self._root}/{image_id}.{kind}")
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
            if self._has_folders:  # half of the file may be there
                with suppress(Exception):
                    self._files.rm_file(path)
            raise

    def _list(self) -> dict[str, _Stored]:
        """What is here by id. Other files are none of ours, and never touched."""
        stored: dict[str, _Stored] = defaultdict(_Stored)
        try:
            listed = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        for info in listed:
            path: str = info["name"]
            if match := _FILE.fullmatch(path.rpartition("/")[2]):
                each = stored[match[1]]
                each.size += info["size"] or 0
                (each.note if match[2] == "json" else each.picture).append(path)
        return stored

    def _find(self, folder: str) -> list[str]:
        """The results below a folder, by their paths."""
        found: list[str] = self._files.find(f"{self._root}/{folder}")
        return [path for path in found if _is_result(path)]

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
            for folder in {path.rpartition("/")[0] for path in paths if _is_result(path)}:
                with suppress(OSError):  # there are newer results
                    self._files.rmdir(folder)

    def _expired(self, image_id: str) -> bool:
        return self._clock() - created_at(image_id) > self.ttl_s

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of client libraries, which share no class, as StoreUnavailable."""
        try:
            yield
        except SDXLError:
            raise
        except Exception as error:
            raise StoreUnavailable from error


def created_at(image_id: str) -> int:
    """When the picture was stored, in seconds since 1970."""
    return int.from_bytes(base64.urlsafe_b64decode(image_id + "==")[:4], "big")


def _new_id(now: float) -> str:
    """32 bits of time, 96 that nobody can guess; 22 letters, of which the first is no dash."""
    token = int(now).to_bytes(4, "big") + secrets.token_bytes(12)
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")


def _is_result(path: str) -> bool:
    folder, key, name = PurePosixPath(path).parts[-3:]
    return folder == _RESULTS and bool(_KEY.fullmatch(key) and _ID.fullmatch(name))
