"""The cache of downloads from the web and from object stores, with a folder for each source.

It may be deleted at any time; the next export then downloads again.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from export.source.remote import Advance, Remote, changed, fetch
from sdxl_bento.config import ExportSettings

Transfer = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Called with a title and the bytes to come (None: unknown); the context shows the progress."""


@contextmanager
def silent(_title: str, _total: int | None) -> Iterator[Advance]:
    """A `Transfer` that shows nothing."""
    yield lambda _more: None


@dataclass
class Workspace:
    """The folders of an export for downloads, which are kept, and for unpacked files.

    Unpacked files go into `scratch`, which the caller removes. The object is a context manager: at
    its end the locks on the cache are released.
    """

    scratch: Path
    settings: ExportSettings
    transfer: Transfer = silent
    _locks: ExitStack = field(default_factory=ExitStack)
    _held: set[Path] = field(default_factory=set)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()
        self._held.clear()

    def download(self, remote: Remote, names: Sequence[str]) -> Path:
        """Download the files of `remote` that are not in the cache; returns their folder.

        Another export of the same source waits until this one has ended. Raises `SourceError` as
        `fetch` does, and if a file is replaced before the last one has been downloaded.
        """
        folder = self._folder(remote.name)
        files = [remote.stat(name) for name in names]
        sizes = [file.size for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with self.transfer(f"Fetch {remote.name}", total) as advance:
            for file in files:
                fetch(remote, file, folder, advance)
        for file in files:
            if remote.stat(file.name).version != file.version:
                raise changed(file.where)
        return folder

    def _folder(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()[:20]
        folder = self.settings.cache / "downloads" / key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder not in self._held:  # base and refiner may come from one place
            lock = self._locks.enter_context((folder / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._held.add(folder)
        return folder
