"""Pictures as bytes: encoding off the event loop, and a store that they can be fetched from."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from PIL import Image as PILImage
from PIL import ImageOps, PngImagePlugin, UnidentifiedImageError

from sdxl_bento.errors import ConfigurationError, ImageNotFound, InvalidInput
from sdxl_bento.params import OutputFormat

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings

MEDIA_TYPES: Mapping[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}
_ID = re.compile(r"[A-Za-z0-9_-]{22}\Z")
_SWEEP_EVERY_S = 30.0
_SHARE = 8  # the store is swept whenever an eighth of its bound has been written


class ImageTooLarge(InvalidInput):
    """An uploaded picture has more pixels than this server takes."""


def decode(data: bytes, max_pixels: int) -> Image:
    """An uploaded PNG, JPEG or WebP as an upright RGB picture.

    Raises InvalidInput, or ImageTooLarge before the pixels are unpacked.
    """
    allowed = "a PNG, JPEG or WebP picture"
    try:
        image: Image = PILImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise ImageTooLarge("image", size, f"at most {max_pixels} pixels")
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise InvalidInput("image", f"{len(data)} bytes of something else", allowed) from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say "broken file"
        raise InvalidInput("image", f"a broken file ({error})", allowed) from None


def encode(
    image: Image,
    output_format: OutputFormat,
    *,
    png_level: int = 1,
    quality: int = 90,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """The picture as a file. `text` goes into a PNG's text chunks; the same input, the same bytes.

    Level 1 by default: at 1024x1024 it takes a sixth of the time of Pillow's default level.
    """
    out = io.BytesIO()
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if output_format == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            info.add_itxt(key, value)
        rgb.save(out, "PNG", compress_level=png_level, pnginfo=info)
    elif output_format == "webp":
        rgb.save(out, "WEBP", quality=quality)
    else:
        rgb.save(out, "JPEG", quality=quality)
    return out.getvalue()


class Encoder:
    """Encodes in a few threads, so that a large PNG never holds up the event loop."""

    def __init__(self, png_level: int, threads: int = 2) -> None:
        self._png_level = png_level
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sdxl-encode")

    async def encode(
        self, image: Image, output_format: OutputFormat, quality: int, text: Mapping[str, str]
    ) -> bytes:
        """`encode` in a thread of this pool."""
        loop = asyncio.get_running_loop()

        def work() -> bytes:
            level = self._png_level
            return encode(image, output_format, png_level=level, quality=quality, text=text)

        return await loop.run_in_executor(self._pool, work)

    def close(self) -> None:
        """End the threads; what is under way is finished first."""
        self._pool.shutdown(wait=True)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture out of the store, with what was noted when it went in."""

    image_id: str
    data: bytes
    media_type: str
    metadata: dict[str, Any]


class ImageStore:
    """Pictures by unguessable id in a folder of any fsspec file system.

    Each is a file beside a JSON file with its metadata. Nothing is indexed in memory, so worker
    processes may share a folder. Pictures older than `ttl_s` are gone; when the folder holds more
    than `max_bytes`, the oldest go first, but none that this process is reading just then.
    Every method blocks: call them from a thread.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float,
        max_bytes: int,
        temporary: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._fs.makedirs(self._root, exist_ok=True)
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._temporary = temporary
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Counter[str] = Counter()
        self._unswept_bytes = 0
        self._swept_at = clock()

    def put(self, data: bytes, output_format: OutputFormat, metadata: Mapping[str, Any]) -> str:
        """Keep a picture; returns its id."""
        image_id = secrets.token_urlsafe(16)
        note = {
            "format": output_format,
            "created": self._clock(),
            "bytes": len(data),
            "metadata": dict(metadata),
        }
        # The note goes last: a picture without one has not been stored.
        self._fs.pipe_file(self._path(image_id, "bin"), data)
        self._fs.pipe_file(self._path(image_id, "json"), json.dumps(note).encode())
        with self._lock:
            self._unswept_bytes += len(data)
            idle = self._clock() - self._swept_at
            due = self._unswept_bytes * _SHARE >= self._max_bytes or idle >= _SWEEP_EVERY_S
            if due:
                self._unswept_bytes, self._swept_at = 0, self._clock()
        if due:
            self.sweep()
        return image_id

    def get(self, image_id: str) -> StoredImage:
        """The picture. Raises ImageNotFound for an id that is unknown, evicted or too old."""
        if not _ID.match(image_id):
            raise ImageNotFound(image_id)
        with self._held(image_id):
            try:
                note = json.loads(self._fs.cat_file(self._path(image_id, "json")))
                if self._expired(note):
                    raise ImageNotFound(image_id, hint=f"it was kept for {self._ttl_s:g} seconds")
                data = self._fs.cat_file(self._path(image_id, "bin"))
            except FileNotFoundError:
                raise ImageNotFound(image_id) from None
        return StoredImage(image_id, data, MEDIA_TYPES[note["format"]], note["metadata"])

    def sweep(self) -> None:
        """Remove what is too old, then the oldest, until the folder is within its bound."""
        notes = sorted(self._notes(), key=lambda item: item[1]["created"])
        total = sum(note["bytes"] for _, note in notes)
        target = self._max_bytes - self._max_bytes // _SHARE  # what comes before the next sweep
        for image_id, note in notes:
            if total <= target and not self._expired(note):
                break
            if self._remove(image_id):
                total -= note["bytes"]

    def close(self) -> None:
        """Remove the folder, if it was only lent for the life of this process."""
        if self._temporary and self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def _notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self._fs.glob(f"{self._root}/*.json"):
            try:
                note = json.loads(self._fs.cat_file(path))
            except (FileNotFoundError, ValueError):  # another process removes or writes it just now
                continue
            yield path.rsplit("/", 1)[-1].removesuffix(".json"), note

    def _remove(self, image_id: str) -> bool:
        with self._lock:
            if self._reading[image_id]:
                return False
            for kind in ("json", "bin"):
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(image_id, kind))
        return True

    @contextmanager
    def _held(self, image_id: str) -> Iterator[None]:
        with self._lock:
            self._reading[image_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._reading[image_id] -= 1
                if not self._reading[image_id]:
                    del self._reading[image_id]

    def _expired(self, note: Mapping[str, Any]) -> bool:
        return bool(self._clock() - note["created"] > self._ttl_s)

    def _path(self, image_id: str, kind: str) -> str:
        return f"{self._root}/{image_id}.{kind}"


def open_store(settings: Settings) -> ImageStore:
    """The store that the settings name, or a folder of its own among the temporary files."""
    ttl_s, max_bytes = settings.store_ttl_s, settings.store_max_mb << 20
    if settings.store_dir is not None:
        return ImageStore(str(settings.store_dir), ttl_s=ttl_s, max_bytes=max_bytes)
    # Worker processes have one parent: they share the folder that is named for it.
    folder = Path(tempfile.gettempdir(), f"sdxl-bento-{os.getuid()}", str(os.getppid()))
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if folder.parent.is_symlink() or folder.parent.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{folder.parent} belongs to another user; set SDXL_STORE_DIR")
    return ImageStore(str(folder), ttl_s=ttl_s, max_bytes=max_bytes, temporary=True)
