"""Whole exports within one process, from sources that are no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from export import job
from export import store as bento
from export.errors import ExportError, UnsafeSourceError
from export.job import Options
from export.progress import Progress
from sdxl_bento.manifest import Manifest
from tests.support import checkpoints


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "store" / "models").mkdir(parents=True)
    monkeypatch.setattr(bento, "store", lambda: tmp_path / "store" / "models")
    for name in ("STORAGE_URI", "MODEL_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDXL_EXPORT_MODEL_MOUNT", str(tmp_path / "mnt-models"))
    monkeypatch.setenv("SDXL_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "store"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "Fine Tune.safetensors", checkpoints.base())


def run(home: Path, source: object = "", **options: Any) -> tuple[str, Manifest]:
    result = job.run(Options(str(source), **options), Progress(Console(quiet=True)))
    return result.tag, Manifest.load(home / "models" / result.tag.replace(":", "/"))


def test_checkpoint(home: Path, checkpoint: Path) -> None:
    tag, manifest = run(home, checkpoint)
    assert (manifest.name, manifest.source.kind) == ("fine-tune", "file")
    assert (manifest.source.location, manifest.variant) == ("Fine Tune.safetensors", "base")
    assert manifest.latent_rgb is not None  # its VAE is not SDXL's
    assert run(home, checkpoint)[0] == tag  # the same content is not exported twice
    assert not list((home / "tmp").glob("sdxl-export-*"))  # nor is what was unpacked left there


def test_variant(home: Path, checkpoint: Path) -> None:
    """It is written down, and it is content: the same weights as another variant are a model."""
    plain, _ = run(home, checkpoint)
    tag, manifest = run(home, checkpoint, variant="lightning")
    assert manifest.variant == "lightning"
    assert tag != plain
    scheduler = home / "models" / tag.replace(":", "/") / "base/scheduler/scheduler_config.json"
    assert '"timestep_spacing": "trailing"' in scheduler.read_text()


def test_variant_of_a_folder(home: Path, base: Any) -> None:
    base.set("scheduler/scheduler_config.json", timestep_spacing="trailing")
    assert run(home, base.path)[1].variant == "lightning"
    assert run(home, base.path, variant="base")[1].variant == "base"


def test_mounted(home: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With nothing named at all: what KServe's storage initializer has put there."""
    mounted = tmp_path / "mnt-models"
    mounted.mkdir()
    (mounted / "model.safetensors").symlink_to(checkpoint)
    with pytest.raises(UnsafeSourceError, match="a link to"):
        run(home)
    (mounted / "model.safetensors").unlink()
    checkpoint.rename(mounted / "model.safetensors")
    _, manifest = run(home, name="mine")
    assert (manifest.source.kind, manifest.source.location) == ("mounted", str(mounted))


def test_refused(home: Path, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"Fine Tune\.safetensors"):
        run(home, checkpoint)
    assert not list((home / "models").rglob("*"))
    assert not list((home / "tmp").glob("sdxl-export-*"))


def test_a_wrong_variable_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_USE_HTTPS", "perhaps")
    with pytest.raises(ExportError, match="S3_USE_HTTPS is 'perhaps'"):
        run(home, "embedded")
