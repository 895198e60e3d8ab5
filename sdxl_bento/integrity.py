"""Whether a model's files are those that were exported, by the sizes and digests of its manifest.

A digest finds what was damaged, cut short or mixed up: on a disk, in a copy, by hand. It is no
signature: whoever can write a model's folder can write its manifest too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from sdxl_bento.layout import leads_out
from sdxl_bento.manifest import ENGINES, FILE_NAME, NOT_CONTENT, FileInfo, Manifest

THREADS: Final = min(4, os.cpu_count() or 1)
READ_BYTES: Final = 1 << 20  # at once
BLOCK_BYTES: Final = 256 << 20  # that have a digest of their own


class Item(NamedTuple):
    """What has a digest of its own in a manifest: a file, or a folder's files together.

    `name` is its path below the model's folder. The first exports have digested whole components,
    and no compiled parts.
    """

    name: str
    bytes: int
    sha256: str
    is_folder: bool = False
    blocks: tuple[str, ...] = ()


def digest(path: Path, block: int | None = None) -> str:
    """SHA-256 of a file or of one of its blocks, hexadecimal. Other threads run meanwhile.

    Raises:
        OSError: it cannot be read.
    """
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        left = path.stat().st_size if block is None else BLOCK_BYTES
        file.seek(0 if block is None else block * BLOCK_BYTES)
        while left > 0 and (count := file.readinto(buffer[:left])):
            hashed.update(buffer[:count])
            left -= count
    return hashed.hexdigest()


def combined_digest(files: Mapping[str, str]) -> str:
    """One SHA-256 for a set of files, given their digests by relative path."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def content_files(folder: Path) -> dict[str, Path]:
    """The files of a model by their paths below its folder, without what is made while serving."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in NOT_CONTENT:
            found[inside.as_posix()] = path
    return found


def describe(folder: Path) -> dict[str, FileInfo]:
    """Sizes and digests for a manifest, of all files but the engines, which are built anew."""
    files = {name: path for name, path in content_files(folder).items() if not _is_engine(name)}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(_describe, files.values()), strict=True))


def _describe(path: Path) -> FileInfo:
    size = path.stat().st_size
    count = -(-size // BLOCK_BYTES)
    blocks = tuple(digest(path, block) for block in range(count)) if count > 1 else ()
    return FileInfo(bytes=size, sha256=digest(path), blocks=blocks)


def items(manifest: Manifest) -> tuple[Item, ...]:
    """Everything that the manifest has a digest of."""
    if manifest.files:
        return tuple(_item(name, info) for name, info in manifest.files.items())
    old = [
        Item(f"{pipeline.path}/{name}", component.bytes, component.sha256, is_folder=True)
        for pipeline in manifest.pipelines.values()
        for name, component in pipeline.components.items()
    ]
    return (*old, *(Item(lora.path, lora.bytes, lora.sha256) for lora in manifest.loras))


def _item(name: str, info: FileInfo) -> Item:
    whole = len(info.blocks) == -(-info.bytes // BLOCK_BYTES)
    return Item(name, info.bytes, info.sha256, blocks=info.blocks if whole else ())


def contradictions(folder: Path, manifest: Manifest) -> list[str]:
    """What the manifest says in two places differently, or not as it was written; in words."""
    if not Manifest.is_as_written(folder):
        return [f"{FILE_NAME} is not as it was written"]
    if not manifest.files:
        return []
    found = []
    for pipeline in manifest.pipelines.values():
        for name, component in pipeline.components.items():
            inside = f"{pipeline.path}/{name}/"
            parts = {
                path.removeprefix(inside): info.sha256
                for path, info in manifest.files.items()
                if path.startswith(inside)
            }
            if combined_digest(parts) != component.sha256:
                found.append(f"{FILE_NAME} has two digests for {inside.rstrip('/')}")
    for lora in manifest.loras:
        known = manifest.files.get(lora.path)
        if known is None or known.sha256 != lora.sha256:
            found.append(f"{FILE_NAME} has two digests for {lora.path}")
    for backend in manifest.backends:
        for path in backend.artifacts.values():
            if path not in manifest.files:
                found.append(f"{FILE_NAME} has no digest of {path}")
    return found


class Checker:
    """Compares a model's files with its manifest, in threads. Each file is read once."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int = THREADS) -> None:
        self._folder = folder
        self._items = items(manifest)
        self._components = (
            [
                f"{pipeline.path}/{name}"
                for pipeline in manifest.pipelines.values()
                for name in pipeline.components
            ]
            if manifest.files
            else []
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="integrity")
        # Equal components are links to one file, and hashed once.
        self._digests: dict[tuple[int, int, int | None], Future[str]] = {}

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. What was begun and nobody has asked for is given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, wanted: Callable[[Item], bool]) -> None:
        """Begin to read the wanted files."""
        for item in filter(wanted, self._items):
            for path in self._paths(item):
                self._digests_of(path, item)

    def damage(self, wanted: Callable[[Item], bool]) -> list[str]:
        """What of the wanted items is not as it was exported, in words; waits for their digests."""
        self.begin(wanted)
        found = [text for item in filter(wanted, self._items) if (text := self._damage(item))]
        return [*found, *self._strangers(wanted)]

    def _damage(self, item: Item) -> str:
        path = self._folder / item.name
        if leads_out(path, self._folder):
            return f"{item.name} is a link that leads out of the model"
        if not path.exists():
            return f"{item.name} is missing"
        try:
            files = self._paths(item)
            size = sum(file.stat().st_size for file in files)
            if size != item.bytes:
                return f"{item.name} has {size} bytes, not {item.bytes}"
            digests = {
                file.name: [future.result() for future in self._digests_of(file, item)]
                for file in files
            }
        except OSError as error:
            return f"{item.name} cannot be read ({error.strerror})"
        if item.blocks:
            pairs = zip(digests[path.name], item.blocks, strict=True)
            wrong = [str(block) for block, (actual, wanted) in enumerate(pairs) if actual != wanted]
            if not wrong:
                return ""
            where = f"blocks of {BLOCK_BYTES} bytes: {', '.join(wrong[:8])}"
            return f"{item.name} is not what was exported (sha256 of {where})"
        whole = {name: sha256 for name, (sha256,) in digests.items()}
        found = combined_digest(whole) if item.is_folder else whole[path.name]
        if found != item.sha256:
            return f"{item.name} is not what was exported (sha256 {found}, not {item.sha256})"
        return ""

    def _paths(self, item: Item) -> list[Path]:
        path = self._folder / item.name
        if not item.is_folder:
            return [path]
        return sorted(path.iterdir()) if path.is_dir() else []

    def _digests_of(self, path: Path, item: Item) -> list[Future[str]]:
        blocks = range(len(item.blocks)) if item.blocks else [None]
        return [self._digest_of(path, block) for block in blocks]

    def _digest_of(self, path: Path, block: int | None) -> Future[str]:
        try:
            status = path.stat()
        except OSError:
            return self._pool.submit(digest, path)  # which raises where it is asked for
        key = status.st_dev, status.st_ino, block
        if key not in self._digests:
            self._digests[key] = self._pool.submit(digest, path, block)
        return self._digests[key]

    def _strangers(self, wanted: Callable[[Item], bool]) -> Iterator[str]:
        """Files in the components' folders that were not exported and might be loaded."""
        known = {item.name for item in self._items}
        for component in self._components:
            for path in sorted((self._folder / component).glob("*")):
                name = f"{component}/{path.name}"
                hidden = path.name.startswith(".")
                if name not in known and not hidden and wanted(Item(name, 0, "")):
                    yield f"{name} was not exported with the model"


def damage(folder: Path, manifest: Manifest, within: Iterable[str] = ("",)) -> list[str]:
    """What of a model is not as it was exported, in words; reads all of it.

    `within` limits this to paths that begin so.
    """
    prefixes = tuple(within)
    with Checker(folder, manifest) as checker:
        found = checker.damage(lambda item: item.name.startswith(prefixes))
    return [*contradictions(folder, manifest), *found]


def _is_engine(name: str) -> bool:
    return ENGINES in Path(name).parts[:-1]
