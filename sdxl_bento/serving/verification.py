"""Whether the models of this process are as they were exported (`SDXL_VERIFY`)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.integrity import Checker, Item, contradictions
from sdxl_bento.manifest import CACHE

if TYPE_CHECKING:
    from sdxl_bento.config import VerifyMode
    from sdxl_bento.manifest import Manifest

logger = logging.getLogger(f"bentoml.{__name__}")

Wanted = Callable[[Item], bool]
_GIVE_WAY = 10  # niceness of the thread in the background


class Verification:
    """The checks of all models of this process.

    Attributes:
        mode: when files are checked.
        damaged: what was found, in words.
        reason: why the models must not draw any more; empty as long as they may.
    """

    def __init__(self, mode: VerifyMode = "load") -> None:
        self.mode = mode
        self.damaged: list[str] = []
        self.reason = ""
        self._later: list[ModelCheck] = []
        self._thread: threading.Thread | None = None

    def of(self, folder: Path, manifest: Manifest) -> ModelCheck:
        """The check of one model, which is about to be loaded."""
        if not manifest.files and self.mode != "off":
            logger.info(
                "%s was exported before digests of all files were kept: its compiled parts are not "
                "checked until it is exported again with --force", manifest.name,
            )  # fmt: skip
        check = ModelCheck(self, folder, manifest)
        if self.mode == "background":
            self._later.append(check)
        return check

    def start(self) -> None:
        """Begin to check in the background, if that is the mode. Call it once all is loaded."""
        if self._later:
            self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait for the check in the background."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # niceness of one thread is a matter of Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _GIVE_WAY)
        for check in self._later:
            begin = time.perf_counter()
            found = check.run()
            if found:
                self.reason = f"{check.name} is damaged: {'; '.join(found)}"
                logger.error("%s; no more pictures are drawn with it: %s", self.reason, MEND)
            else:
                seconds = time.perf_counter() - begin
                logger.info("%s is as it was exported (checked in %.1f s)", check.name, seconds)


MEND = (
    "export the model again with --force, or restore the files from a copy, and restart; "
    "`sdxl-bento doctor` lists all that differ"
)


class ModelCheck:
    """The check of one model: what is about to be loaded is handed in by and by."""

    def __init__(self, owner: Verification, folder: Path, manifest: Manifest) -> None:
        self._owner, self._folder, self._manifest = owner, folder, manifest
        threads = 1 if owner.mode == "background" else 0
        self._checker = Checker(folder, manifest, *filter(None, [threads]))
        self._wanted: list[Wanted] = []

    @property
    def name(self) -> str:
        """Of the model."""
        return self._manifest.name

    @property
    def checks_caches(self) -> bool:
        """Whether files that a runtime has derived are to be checked before it reads them."""
        return self._owner.mode == "load"

    def begin(self, wanted: Wanted) -> None:
        """Begin to read what `require` will ask for."""
        if self._owner.mode == "load":
            self._checker.begin(wanted)

    def require(self, wanted: Wanted) -> None:
        """Raise unless the wanted items are as they were exported; in other modes, do so later.

        Raises:
            ConfigurationError: an item is damaged, missing or was not exported.
        """
        if self._owner.mode == "background":
            self._wanted.append(wanted)
        if self._owner.mode == "load" and (found := self._checker.damage(wanted)):
            raise self._damaged(found)

    def require_manifest(self) -> None:
        """Raise `ConfigurationError` unless the manifest is as it was written, at any time."""
        if self._owner.mode != "off" and (found := contradictions(self._folder, self._manifest)):
            raise self._damaged(found)

    def run(self) -> list[str]:
        """Check all that `require` was asked for; what differs, in words."""
        from sdxl_bento.backends.derived import remove_damaged

        wanted = list(self._wanted)
        found = self._checker.damage(lambda item: any(each(item) for each in wanted))
        cache = self._folder / CACHE
        if cache.is_dir():
            with suppress(ConfigurationError):
                found += [f"{CACHE}/{name} has changed" for name in remove_damaged(cache)]
        self._checker.close()
        self._owner.damaged += found
        return found

    def close(self) -> None:
        """The model is loaded, or cannot be."""
        if self._owner.mode != "background":
            self._checker.close()

    def _damaged(self, found: list[str]) -> ConfigurationError:
        self._owner.damaged += found
        return ConfigurationError(f"{self._folder} is damaged: {'; '.join(found)}; {MEND}")
