"""Adapters (LoRA): known by name, loaded in the background, evicted by bytes, applied per row.

Threads: one thread, the engine's, calls `ready`, `use`, `release` and `applied`. A loader thread
reads files and publishes whole adapters under the lock; it touches no module.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import RLock

from torch import nn

from sdxl_bento.diffusion.lora.batches import Batches
from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.files import Adapter, read_adapter
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.tensors import Stamp, fingerprint_of, stamp_of
from sdxl_bento.diffusion.memory import out_of_memory_typed
from sdxl_bento.engine.executor import DeviceOutOfMemory
from sdxl_bento.errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConfigurationError,
    OutOfMemory,
    RequestFailed,
    SDXLError,
)

SUFFIX = ".safetensors"
logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True)
class _File:
    path: Path
    pinned: bool


@dataclass(frozen=True)
class _Failure:
    error: SDXLError
    stamp: Stamp | None


class LoraPool:
    """The adapters of one model."""

    def __init__(
        self,
        targets: Mapping[str, nn.Module],
        *,
        budget_bytes: int,
        on_loaded: Callable[[], None],
        layers: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """
        Args:
            targets: "unet", "text_encoder", "text_encoder_2" → the module; those that there are.
            layers: target → the only layers that can take an adapter, where not all can.
            budget_bytes: of loaded adapters. Pinned ones and those in use may exceed it.
            on_loaded: called from the loader thread when one load has ended, well or badly.
        """
        only = layers or {}
        self._targets = {name: Modules(module, only.get(name)) for name, module in targets.items()}
        self._budget = budget_bytes
        self._on_loaded = on_loaded
        self._lock = RLock()
        self._files: dict[str, _File] = {}
        # Least recently asked for first. No ready-made cache: pinned ones and those in use stay.
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._loading: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._users: Counter[str] = Counter()
        self._batches = Batches(self._targets, budget_bytes)
        self._hashed: dict[Path, tuple[Stamp, str]] = {}
        self._unused: set[str] = set()  # loaded for a request that has not started yet
        self.hits = 0
        self.loads = 0
        self.failures = 0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="lora-loader")

    # What there is

    def register(self, name: str, path: Path, *, pinned: bool = False) -> None:
        """Make a file known under a name. Loads nothing.

        A loaded adapter whose file has changed is dropped, unless it is in use.

        Raises:
            ConfigurationError: not a .safetensors file, or none at all.
        """
        if path.suffix != SUFFIX or not path.is_file():
            raise ConfigurationError(f"LoRA {name}: {path} is not a {SUFFIX} file")
        with self._lock:
            adapter = self._loaded.get(name)
            changed = adapter and (path != self._files[name].path or adapter.stamp != _stamp(path))
            if changed and not self._users[name]:
                self._evict(name)
            self._files[name] = _File(path, pinned)

    def scan(self, folder: Path) -> list[str]:
        """Register every .safetensors file of a folder by its stem; returns the names."""
        paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
        for path in paths:
            known = self._files.get(path.stem)
            self.register(path.stem, path, pinned=known is not None and known.pinned)
        return [path.stem for path in paths]

    def names(self) -> list[str]:
        return sorted(self._files)

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    def is_pinned(self, name: str) -> bool:
        return self._file(name).pinned

    def size_bytes(self, name: str) -> int:
        """In memory if loaded, else of the file."""
        adapter = self._loaded.get(name)
        return adapter.nbytes if adapter else self._file(name).path.stat().st_size

    def changes(self, name: str, target: str) -> bool:
        """Whether a loaded adapter has anything for a target."""
        return bool(self._loaded[name].layers.get(target))

    def fingerprint(self, names: Iterable[str]) -> str:
        """Hash of the files' content, in the order of their names; reads those not loaded."""
        digest = sha256()
        for fingerprint in self.fingerprints(names).values():
            digest.update(fingerprint.encode())
        return digest.hexdigest()

    def fingerprints(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of each file: as it was loaded, else as it is now, which is read.

        Raises:
            AdapterNotFound: no such name, or its file is gone.
        """
        hashes = {}
        for name in sorted(set(names)):
            adapter = self._loaded.get(name)
            hashes[name] = adapter.fingerprint if adapter else self._fingerprint(name)
        return hashes

    def _fingerprint(self, name: str) -> str:
        path = self._file(name).path
        try:
            stamp = stamp_of(path)
            known = self._hashed.get(path)
            if known is None or known[0] != stamp:
                known = self._hashed[path] = (stamp, fingerprint_of(path))
        except FileNotFoundError as error:
            raise AdapterNotFound(name, hint=f"its file {path.name} is gone") from error
        return known[1]

    # Loading and evicting

    def ready(self, names: Iterable[str]) -> bool:
        """Whether all are loaded; if not, begins to load the missing ones in the background.

        Ask only for requests that would start now: a load makes room by evicting what has not
        been asked for the longest.

        Raises:
            AdapterNotFound: no such name, or its file is gone.
            AdapterMismatch: the file doesn't fit; raised again until the file changes.
            RequestFailed: loading failed by an error of ours; the next call tries again.
        """
        wanted = set(names)
        with self._lock:
            for name in wanted:
                self._file(name)
                self._raise_failure(name)
            for name in sorted(wanted & self._loaded.keys()):
                self._loaded.move_to_end(name)
            missing = wanted - self._loaded.keys()
            for name in sorted(missing - self._loading):
                self._loading.add(name)
                self._loader.submit(self._load, name)
            self._shrink(keep=wanted)
        return not missing

    def use(self, names: Iterable[str]) -> None:
        """A request with these begins to run: none of them is evicted until it is released."""
        with self._lock:
            for name in names:
                self._users[name] += 1
                self.hits += name not in self._unused
                self._unused.discard(name)

    def release(self, names: Iterable[str]) -> None:
        with self._lock:
            self._users.subtract(names)
            self._users = +self._users
            self._shrink(keep=())

    def close(self) -> None:
        """Start no more loads and wait for the one under way."""
        self._loader.shutdown(cancel_futures=True)

    def _file(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            raise AdapterNotFound(name, self.names())
        return file

    def _raise_failure(self, name: str) -> None:
        failure = self._failures.get(name)
        if failure is None:
            return
        if failure.stamp is None:
            del self._failures[name]  # said once, then tried again
        elif _stamp(self._files[name].path) != failure.stamp:
            del self._failures[name]
            return
        raise failure.error.with_traceback(None)

    def _load(self, name: str) -> None:
        path = self._files[name].path
        stamp = _stamp(path)
        failure = None
        try:
            with out_of_memory_typed():
                adapter = read_adapter(name, path, self._targets)
        except AdapterMismatch as error:
            failure = _Failure(error, stamp)
        except AdapterNotFound as error:
            failure = _Failure(error, None)
        except DeviceOutOfMemory:
            failure = _Failure(OutOfMemory(f"no memory to load the LoRA {name}"), None)
        except Exception:
            logger.exception("Loading the LoRA %s failed", name)
            failure = _Failure(RequestFailed(f"the LoRA {name} could not be loaded"), None)
        with self._lock:
            self._loading.discard(name)
            if failure:
                self._failures[name] = failure
                self.failures += 1
            else:
                self._loaded[name] = adapter
                self._unused.add(name)
                self.loads += 1
        self._on_loaded()

    def _shrink(self, keep: Iterable[str]) -> None:
        """Evict the least recently asked for until the budget holds, or nothing more may go."""
        held = sum(adapter.nbytes for adapter in self._loaded.values())
        for name in list(self._loaded):
            if held <= self._budget:
                return
            if name in keep or self._users[name] or self._files[name].pinned:
                continue
            held -= self._evict(name).nbytes

    def _evict(self, name: str) -> Adapter:
        self._batches.forget(name)
        return self._loaded.pop(name)

    # Applying

    def applied(self, target: str, rows: Sequence[Mix]) -> AbstractContextManager[None]:
        """While inside, forwards of a target add to each row of their batch its own adapters.

        Args:
            target: "unet", "text_encoder" or "text_encoder_2".
            rows: one mix for each row of the batch; rows of one mix are best kept neighbours.

        Raises:
            RequestFailed: an adapter is not loaded; call `ready` and `use` first.
        """
        if not any(rows):
            return nullcontext()
        names = {name for mix in rows for name, _ in mix}
        with self._lock:
            absent = sorted(names - self._loaded.keys())
            if absent:
                raise RequestFailed(f"not loaded: {', '.join(absent)}")
            adapters = {name: self._loaded[name].layers.get(target, {}) for name in names}
        return self._batches.composition(target, rows, adapters).active()

    def factors(
        self, target: str, names: Iterable[str]
    ) -> tuple[dict[str, Mapping[str, LowRank]], dict[str, str]]:
        """Of loaded adapters, by name: layer of the target -> factors; and the file's hash.

        Raises:
            RequestFailed: an adapter is not loaded; call `ready` and `use` first.
        """
        with self._lock:
            loaded = {name: self._adapter(name) for name in names}
        return (
            {name: adapter.layers.get(target, {}) for name, adapter in loaded.items()},
            {name: adapter.fingerprint for name, adapter in loaded.items()},
        )

    def _adapter(self, name: str) -> Adapter:
        adapter = self._loaded.get(name)
        if adapter is None:
            raise RequestFailed(f"not loaded: {name}")
        return adapter


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:
        return None
