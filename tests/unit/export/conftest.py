"""Copies of the embedded model, to break in one place at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.embedded import WEIGHTS
from export.source.downloads import Workspace
from sdxl_bento.config import ExportSettings

Edit = Callable[[dict[str, Any]], object]


class Copy:
    """A pipeline folder of its own. Files are links until they are written to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, data: bytes) -> None:
        target = self.path / name
        target.unlink(missing_ok=True)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)

    def edit(self, name: str, change: Edit) -> None:
        content = json.loads((self.path / name).read_text())
        change(content)
        self.write(name, json.dumps(content).encode())

    def set(self, name: str, **values: Any) -> None:
        self.edit(name, lambda content: content.update(values))

    def move(self, name: str, new: str) -> None:
        (self.path / name).rename(self.path / new)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy(tmp_path: Path, role: str) -> Copy:
    shutil.copytree(WEIGHTS / role, tmp_path / role, copy_function=_link)
    return Copy(tmp_path / role)


@pytest.fixture
def base(tmp_path: Path) -> Copy:
    return _copy(tmp_path, "base")


@pytest.fixture
def refiner(tmp_path: Path) -> Copy:
    return _copy(tmp_path, "refiner")


@pytest.fixture
def settings(tmp_path: Path) -> ExportSettings:
    """The environment's settings of an export, with every folder below `tmp_path`."""
    return ExportSettings().model_copy(
        update={
            "cache": tmp_path / "cache",
            "model_mount": tmp_path / "mnt-models",
            "pvc_mount": tmp_path / "mnt-pvc",
        }
    )


@pytest.fixture
def workspace(tmp_path: Path, settings: ExportSettings) -> Iterator[Workspace]:
    (tmp_path / "scratch").mkdir()
    with Workspace(tmp_path / "scratch", settings) as made:
        yield made
