"""A file system that hangs on command, as a network's does."""

from __future__ import annotations

import os
import threading
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class HangingFiles(LocalFileSystem):  # type: ignore[misc]
    """A local folder, of which every call hangs for ever while the file FAKE_STORE_HANGS exists."""

    protocol = "hanging"

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        _hang()
        super().pipe_file(path, value, **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        _hang()
        return super().cat_file(path, *args, **options)

    def ls(self, path: str, *args: Any, **options: Any) -> Any:
        _hang()
        return super().ls(path, *args, **options)


def _hang() -> None:
    if os.path.exists(os.environ["FAKE_STORE_HANGS"]):  # noqa: PTH110
        threading.Event().wait()
