"""The commands run in this process, with a store and an environment of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdxl_bento.cli.app import app
from sdxl_bento.manifest import Manifest
from tests.support.manifests import with_digests
from tests.unit.test_manifest import manifest

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty BENTOML_HOME, no settings, and a folder to write to that is the current one."""
    for name in list(os.environ):
        if name.upper().startswith("SDXL_"):
            monkeypatch.delenv(name)
    home = tmp_path / "bentoml"
    (home / "models").mkdir(parents=True)
    monkeypatch.setenv("BENTOML_HOME", str(home))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture
def run() -> Run:
    """Run a command line; returns typer's result."""

    def invoke(*arguments: str, input: str | None = None) -> Any:
        return CliRunner().invoke(app, arguments, input=input, prog_name="sdxl-bento")

    return invoke


def store_model(home: Path, name: str, version: str = "one", **changes: Any) -> Path:
    """Put a model into the store whose files are as its manifest says."""
    folder = home / "models" / name / version
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text("name: x\n")
    written: Manifest = manifest(name=name, **changes)
    written.save(folder)
    for pipeline in (written.base, written.refiner):
        if pipeline is not None:
            for component, info in pipeline.components.items():
                part = folder / pipeline.path / component
                part.mkdir(parents=True)
                (part / "weights").write_bytes(b"x" * info.bytes)
    paths = [lora.path for lora in written.loras]
    paths += [path for info in written.backends for path in info.artifacts.values()]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    with_digests(written, folder).save(folder)
    (home / "models" / name / "latest").write_text(version)
    return folder
