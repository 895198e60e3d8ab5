"""Which adapters there are: the model's own, and those of folders that may change at any time."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

from sdxl_bento.diffusion.lora.folder import SUFFIX, Found, LoraFile, look
from sdxl_bento.errors import AdapterNotFound, ConfigurationError

logger = logging.getLogger(f"bentoml.{__name__}")


class Catalogue:
    """Files by the names of their adapters. Any thread may use it; only some calls touch files."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._own: dict[str, LoraFile] = {}
        self._gone: set[str] = set()  # of its own
        self._folders: dict[Path, Found] = {}
        self.files: Mapping[str, LoraFile] = {}  # replaced by another one when something changes

    def register(self, name: str, path: Path) -> None:
        """Add a file under a name. Raises ConfigurationError if it is no .safetensors file."""
        file = _looked_at(path)
        if path.suffix.lower() != SUFFIX or file is None:
            raise ConfigurationError(f"LoRA {name}: {path} is not a {SUFFIX} file")
        with self._lock:
            self._own[name] = file
            self._gone.discard(name)
            self._merge()

    def scan(self, folder: Path) -> list[str]:
        """Add the adapters of a folder; returns their names.

        They take the place of registered ones of the same names. The log says what in the folder
        is not used, and why.
        """
        found = look(folder)
        with self._lock:
            before = self._folders.get(folder, Found())
            self._folders[folder] = found
            self._merge()
        _log(folder, before, found, self._own)
        return sorted(found.files)

    def rescan(self) -> None:
        """Look at all folders and registered files again."""
        for folder in list(self._folders):
            self.scan(folder)
        own = {name: _looked_at(file.path) for name, file in list(self._own.items())}
        with self._lock:
            self._own.update({name: file for name, file in own.items() if file is not None})
            self._gone = {name for name, file in own.items() if file is None}
            self._merge()

    def update(self, name: str, file: LoraFile) -> None:
        """Take note that a file was seen to be another one than before."""
        with self._lock:
            if name in self._own and self._own[name].path == file.path:
                self._own[name] = file
            for folder, found in self._folders.items():
                if name in found.files and found.files[name].path == file.path:
                    self._folders[folder] = replace(found, files={**found.files, name: file})
            self._merge()

    def outdated(self, names: Iterable[str]) -> bool:
        """Whether a file of these has changed or is gone since it was looked at. It looks."""
        files = self.files
        known = [files[name] for name in names if name in files]
        return any(_looked_at(file.path) != file for file in known)

    def file(self, name: str) -> LoraFile:
        """Raises AdapterNotFound."""
        file = self.files.get(name)
        if file is None:
            raise AdapterNotFound(name, sorted(self.files))
        return file

    def _merge(self) -> None:
        files = {name: file for name, file in self._own.items() if name not in self._gone}
        for found in self._folders.values():
            files.update(found.files)
        self.files = files


def _looked_at(path: Path) -> LoraFile | None:
    """A file as it is now; None if it is gone."""
    try:
        return LoraFile.of(path)
    except OSError:
        return None


def _log(folder: Path, before: Found, found: Found, own: Collection[str]) -> None:
    """Say what is new since the folder was looked at before."""
    for path, reason in found.passed_over.items():
        if before.passed_over.get(path) != reason:
            logger.warning("SDXL_LORA_DIR %s: %s is not used: %s", folder, path, reason)
    for name in sorted((found.files.keys() & own) - before.files.keys()):
        logger.warning(
            "SDXL_LORA_DIR %s: %s is used in place of the model's own LoRA of that name",
            folder,
            found.files[name].path.name,
        )
