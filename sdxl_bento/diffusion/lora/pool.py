"""Adapters (LoRA): known by name, loaded in the background, evicted by bytes, applied per row.

Threads: one thread, the engine's, calls `ready`, `use`, `release` and `applied`. A loader thread
reads files and publishes whole adapters under the lock; it touches no module. Any thread may look
at the folders again; what that makes stale is dropped by the engine's thread.
"""

from __future__ import annotations

import logging
import os
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
from sdxl_bento.diffusion.lora.catalogue import Catalogue
from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.files import Adapter, read_adapter
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.folder import LoraFile, Stamp, stamp_of
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.tensors import fingerprint_of
from sdxl_bento.diffusion.memory import out_of_memory_typed
from sdxl_bento.engine.executor import DeviceOutOfMemory
from sdxl_bento.errors import (
    AdapterMismatch,
    AdapterNotFound,
    OutOfMemory,
    RequestFailed,
    SDXLError,
    readable,
)

logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True)
class Listed:
    """An adapter that requests may name. `size_bytes` is its file's, as it was looked at last.

    `skipped` names the tensors of its file that have no effect; none until it has been loaded.
    """

    name: str
    size_bytes: int
    loaded: bool
    pinned: bool
    skipped: tuple[str, ...]


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
        pinned: Collection[str] = (),
    ) -> None:
        """
        Args:
            targets: "unet", "text_encoder", "text_encoder_2" → the module; those that there are.
            layers: target → the only layers that can take an adapter, where not all can.
            budget_bytes: of loaded adapters. Pinned ones and those in use may exceed it.
            on_loaded: called from the loader thread when one load has ended, well or badly.
            pinned: names of adapters that are never evicted.
        """
        only = layers or {}
        self._targets = {name: Modules(module, only.get(name)) for name, module in targets.items()}
        self._budget = budget_bytes
        self._on_loaded = on_loaded
        self._lock = RLock()
        self._catalogue = Catalogue()
        self._pinned = set(pinned)
        # Least recently asked for first. No ready-made cache: pinned ones and those in use stay.
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._loading: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._skipped: dict[str, tuple[Stamp, tuple[str, ...]]] = {}
        self._users: Counter[str] = Counter()
        self._batches = Batches(self._targets, budget_bytes)
        self._hashed: dict[Path, tuple[Stamp, str]] = {}
        self._unused: set[str] = set()  # loaded for a request that has not started yet
        self.hits = 0
        self.loads = 0
        self.failures = 0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="lora-loader")

    # What there is

    def register(self, name: str, path: Path) -> None:
        """Make a file known under a name. Loads nothing.

        Raises:
            ConfigurationError: not a .safetensors file, or none at all.
        """
        self._catalogue.register(name, path)

    def scan(self, folder: Path) -> list[str]:
        """Register the adapters of a folder, which `rescan` looks at again; returns their names.

        They take the place of registered ones of the same names.
        """
        return self._catalogue.scan(folder)

    def rescan(self) -> None:
        """Look at all folders and registered files again.

        Files that are new can be used from now on, and those that are gone cannot. A loaded
        adapter whose file has changed or is gone is dropped as soon as no running request uses it.
        """
        self._catalogue.rescan()

    def outdated(self, names: Iterable[str]) -> bool:
        """Whether a file of these has changed or is gone since it was looked at. It looks."""
        return self._catalogue.outdated(names)

    def names(self) -> list[str]:
        return sorted(self._catalogue.files)

    def listed(self) -> list[Listed]:
        """All adapters by name. Looks at no file."""
        files = self._catalogue.files
        with self._lock:
            return [self._described(name, files[name]) for name in sorted(files)]

    def _described(self, name: str, file: LoraFile) -> Listed:
        stamp, skipped = self._skipped.get(name, (None, ()))
        if stamp != file.stamp:
            skipped = ()
        return Listed(name, file.size_bytes, self.is_loaded(name), name in self._pinned, skipped)

    def is_loaded(self, name: str) -> bool:
        """Whether requests with it can start at once, or some are running."""
        return name in self._loaded and (self._users[name] > 0 or not self._is_stale(name))

    def _is_stale(self, name: str) -> bool:
        """Whether the file of a loaded adapter is another one by now, or gone."""
        adapter, file = self._loaded.get(name), self._catalogue.files.get(name)
        return adapter is not None and (file is None or file.stamp != adapter.stamp)

    def is_pinned(self, name: str) -> bool:
        """Raises AdapterNotFound."""
        self._catalogue.file(name)
        return name in self._pinned

    def size_bytes(self, name: str) -> int:
        """Of the file, as it was looked at last. Raises AdapterNotFound."""
        return self._catalogue.file(name).size_bytes

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
            AdapterMismatch: its file cannot be read.
        """
        hashes = {}
        for name in sorted(set(names)):
            adapter = None if self._is_stale(name) else self._loaded.get(name)
            hashes[name] = adapter.fingerprint if adapter else self._fingerprint(name)
        return hashes

    def _fingerprint(self, name: str) -> str:
        path = self._catalogue.file(name).path
        try:
            stamp = stamp_of(path)
            known = self._hashed.get(path)
            if known is None or known[0] != stamp:
                known = self._hashed[path] = (stamp, fingerprint_of(path))
        except FileNotFoundError as error:
            raise AdapterNotFound(name, hint=f"its file {path.name} is gone") from error
        except OSError as error:
            reason = f"the file cannot be read, {os.strerror(error.errno or 0)}"
            raise AdapterMismatch(name, [path.name], reason) from error
        return known[1]

    # Loading and evicting

    def load_pinned(self) -> None:
        """Begin to load the pinned adapters. The log says why one cannot be loaded."""
        known = set(self._catalogue.files)
        for name in sorted(self._pinned - known):
            logger.warning("SDXL_LORA_PINNED names %s, which is no adapter here", name)
        with self._lock:
            self._begin_to_load(self._pinned & known)

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
            self._drop_stale()
            for name in wanted:
                self._raise_failure(name, self._catalogue.file(name).path)
            for name in sorted(wanted & self._loaded.keys()):
                self._loaded.move_to_end(name)
            missing = wanted - self._loaded.keys()
            self._begin_to_load(missing)
            self._shrink(keep=wanted)
        return not missing

    def _begin_to_load(self, names: Iterable[str]) -> None:
        for name in sorted(set(names) - self._loading):
            path = self._catalogue.file(name).path
            self._loading.add(name)
            self._loader.submit(self._load, name, path)

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
            self._drop_stale()
            self._shrink(keep=())

    def close(self) -> None:
        """Start no more loads and wait for the one under way."""
        self._loader.shutdown(cancel_futures=True)

    def _raise_failure(self, name: str, path: Path) -> None:
        failure = self._failures.get(name)
        if failure is None:
            return
        if failure.stamp is None:
            del self._failures[name]  # said once, then tried again
        elif _stamp(path) != failure.stamp:
            del self._failures[name]
            return
        raise failure.error.with_traceback(None)

    def _load(self, name: str, path: Path) -> None:
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
                if name in self._pinned:
                    logger.warning("The pinned LoRA %s is not loaded: %s", name, failure.error)
            else:
                self._loaded[name] = adapter
                self._catalogue.update(name, LoraFile(path, adapter.stamp))
                self._unused.add(name)
                self._skipped[name] = adapter.stamp, adapter.skipped
                self.loads += 1
                if adapter.skipped:
                    _log_skipped(adapter)
        self._on_loaded()

    def _shrink(self, keep: Iterable[str]) -> None:
        """Evict the least recently asked for until the budget holds, or nothing more may go."""
        held = sum(adapter.nbytes for adapter in self._loaded.values())
        for name in list(self._loaded):
            if held <= self._budget:
                return
            if name in keep or self._users[name] or name in self._pinned:
                continue
            held -= self._evict(name).nbytes

    def _drop_stale(self) -> None:
        for name in list(self._loaded):
            if self._is_stale(name) and not self._users[name]:
                self._evict(name)

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


def _log_skipped(adapter: Adapter) -> None:
    count = len(adapter.skipped)
    shown = ", ".join(map(readable, adapter.skipped[:8])) + (", …" if count > 8 else "")
    logger.warning("LoRA %s: %d tensors have no effect here: %s", adapter.name, count, shown)
