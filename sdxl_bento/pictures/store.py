"""Pictures by unguessable id, in a folder or an object store that worker processes share.

Below the root::

    <id>.png            a picture; or .webp, .jpeg
    <id>.json           its note: metadata, length and digests, see `notes`
    results/<key>/<id>  an empty file: this picture is the result of the key, see `cache`

An id tells when its picture was stored and for how long, and a listing has sizes, so a sweep need
not read any file. There is no index in memory: processes see at once what others have written.

What is read is compared with the note. A picture that has been cut, emptied, changed or exchanged
counts as absent, and so does one whose note is broken; the next sweep removes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdxl_bento.errors import ImageNotFound
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.pictures.files import StoreFiles
from sdxl_bento.pictures.listing import superfluous
from sdxl_bento.pictures.names import (
    METADATA_SUFFIX,
    RESULTS,
    base_name,
    created_at,
    is_id,
    lifetime_of,
    new_id,
)
from sdxl_bento.pictures.notes import MAX_BYTES, Damaged, Note
from sdxl_bento.pictures.reasons import Rarely
from sdxl_bento.pictures.room import Room
from sdxl_bento.pictures.sweeping import Sweeper

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from sdxl_bento.params import OutputFormat

logger = logging.getLogger(f"bentoml.{__name__}")

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


class ImageStore(StoreFiles):
    """The pictures below one root. Every method blocks, so call it from a thread.

    A picture can be fetched for the time that its id tells, whichever server asks. Once all
    pictures take more than `max_bytes`, or the file system is full, the oldest are removed.

    Where the file system fails, every method raises StoreUnavailable from its error.

    Attributes:
        ttl_s: the seconds for which this store's own pictures are kept.
        on_damaged: called when a damaged picture or note was found.
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
            ttl_s: for how many seconds a picture that is stored here is kept.
            max_bytes: most bytes of all pictures together, whichever process wrote them.
            writers: number of processes that write here.
            temporary: whether `close` removes everything.
            clock: the current time in seconds since 1970.
        """
        super().__init__(files, root)
        self.ttl_s = ttl_s
        self._target_bytes = max_bytes - max_bytes // _SHARE
        self._temporary = temporary
        self._clock = clock
        self.on_damaged: Callable[[], None] = lambda: None
        self._damaged: set[str] = set()
        self._room = Room(self._remove_oldest)
        self._full = Rarely(logger)
        self._sweeper = Sweeper(
            self.sweep,
            after_bytes=max_bytes // _SHARE // writers,
            after_s=ttl_s / _SHARE,
            clock=clock,
        )

    def put(
        self,
        data: bytes,
        output_format: OutputFormat,
        metadata: Mapping[str, Any],
        key: str | None = None,
    ) -> str:
        """Store a picture; returns its id.

        Args:
            data: its file.
            output_format: of the file.
            metadata: what is to be known of it.
            key: 64 hexadecimal digits, of which the picture is the result.
        """
        image_id = new_id(self._clock(), self.ttl_s)
        note = Note.of(image_id, data, output_format, metadata, key).written()

        def write() -> None:
            # The note is written after the picture: a picture without it does not count as stored,
            # so nobody can find half of one.
            with self._translated_errors():
                self._write(f"{image_id}.{output_format}", data)
                self._write(f"{image_id}.{METADATA_SUFFIX}", note)
                if key is not None:
                    self._write(f"{RESULTS}/{key}/{image_id}", b"")

        self._room.write(write, len(data) + len(note))
        self._sweeper.wrote(len(data))
        return image_id

    def get(self, image_id: str) -> StoredImage:
        """The picture.

        Raises ImageNotFound for an id that is unknown, evicted or too old, and for one whose
        picture or note is damaged.
        """
        return self._read_by(self._note(image_id))

    def describe(self, image_id: str) -> dict[str, Any]:
        """The metadata of a picture, without its file. Raises ImageNotFound as `get` does."""
        note = self._note(image_id)
        own = {
            "image_id": image_id,
            "format": note.output_format,
            "bytes": note.size,
            "created": created_at(image_id),
        }
        return {**own, **note.metadata, **own}

    def get_result(self, key: str, output_format: OutputFormat) -> StoredImage | None:
        """The newest picture that is the result of `key`; or None."""
        with self._translated_errors():
            ids = [base_name(path) for path in self._find(f"{RESULTS}/{key}")]
        for image_id in sorted(ids, key=created_at, reverse=True):
            with suppress(ImageNotFound):  # it was evicted
                note = self._note(image_id)
                if (note.key, note.output_format) == (key, output_format):
                    return self._read_by(note)
        return None

    def is_ageing(self, image_id: str) -> bool:
        """Whether more than half of the time for which a picture is kept is over."""
        return self._age(image_id) > self._lifetime(image_id) / 2

    def sweep(self, grace_s: float = 0.0) -> None:
        """Remove pictures that are too old or damaged, then the oldest ones, until there is room.

        Notes are removed first, and the pictures `grace_s` seconds later, so that a reader in any
        process that has just read the note still gets the picture. What an interrupted sweep or
        `put` leaves behind is removed by a later sweep.
        """
        self._sweeper.reset()
        with self._translated_errors():
            # Results are listed before pictures, because a result is written after its picture: so
            # a result is never taken for a dangling one while its picture is being stored.
            results = self._find(RESULTS)
            stored = self._list()
            evicted = superfluous(stored, self._target_bytes, self._expired)
            evicted |= self._still_damaged(stored)
            kept = stored.keys() - evicted
            dangling = [path for path in results if base_name(path) not in kept]
            metadata = [path for image_id in evicted for path in stored[image_id].metadata]
            self._remove([*dangling, *metadata])
            pictures = [path for image_id in evicted for path in stored[image_id].picture]
            if not pictures or self._sweeper.wait(grace_s):
                return
            self._remove(pictures)

    def start_sweeping(self) -> None:
        """Sweep in a thread from now on, until `close` is called."""
        self._sweeper.start()

    def close(self) -> None:
        """Stop sweeping. Remove everything if the store is a temporary one."""
        self._sweeper.close()
        if self._temporary:
            with suppress(FileNotFoundError):
                self._files.rm(self._root, recursive=True)

    def _note(self, image_id: str) -> Note:
        """The note of a picture. Raises ImageNotFound."""
        if not is_id(image_id):
            raise ImageNotFound(image_id)
        if self._expired(image_id):
            lifetime = f"it was kept for {self._lifetime(image_id):g} seconds"
            raise ImageNotFound(image_id, hint=lifetime)
        with self._damage_noted(image_id):
            return self._read_note(image_id)

    def _read_note(self, image_id: str) -> Note:
        """The note in its file. Raises ImageNotFound, Damaged."""
        return Note.read(self._read(image_id, METADATA_SUFFIX, MAX_BYTES), image_id)

    def _read_by(self, note: Note) -> StoredImage:
        """The picture of a note. Raises ImageNotFound."""
        with self._damage_noted(note.image_id):
            data = self._read(note.image_id, note.output_format, note.size)
            note.check(data)
        return StoredImage(note.image_id, data, note.output_format, note.metadata)

    @contextmanager
    def _damage_noted(self, image_id: str) -> Iterator[None]:
        """Count damage, remember it for the next sweep, and raise it as ImageNotFound."""
        try:
            yield
        except Damaged as error:
            if image_id not in self._damaged:
                logger.warning("a stored picture is damaged and will be removed: %s", error)
            self._damaged.add(image_id)
            self.on_damaged()
            raise ImageNotFound(image_id) from None

    def _still_damaged(self, stored: Collection[str]) -> set[str]:
        """The pictures that were found to be damaged, and are: they are read once more.

        A note that was being written may have been read too early.
        """
        found, self._damaged = self._damaged, set()
        damaged = set()
        for image_id in found.intersection(stored):
            try:
                note = self._read_note(image_id)
                note.check(self._read(image_id, note.output_format, note.size))
            except (Damaged, ImageNotFound):
                damaged.add(image_id)
        return damaged

    def _remove_oldest(self, size: int) -> bool:
        """Remove pictures at once, so that there is room for several of `size` bytes.

        Returns whether there were any: an eighth of all bytes, or up to a quarter in a small store.
        """
        with self._translated_errors():
            stored = self._list()
            total = sum(files.size for files in stored.values())
            target = total - max(total // _SHARE, min(4 * size, total // 4))
            evicted = superfluous(stored, target, self._expired)
            self._remove([path for image_id in evicted for path in stored[image_id].metadata])
            self._remove([path for image_id in evicted for path in stored[image_id].picture])
        if evicted:
            self._full.warn("the image store is full: its %d oldest pictures go", len(evicted))
        return bool(evicted)

    def _age(self, image_id: str) -> float:
        return self._clock() - created_at(image_id)

    def _lifetime(self, image_id: str) -> float:
        return lifetime_of(image_id, otherwise_s=self.ttl_s)

    def _expired(self, image_id: str) -> bool:
        return self._age(image_id) > self._lifetime(image_id)
