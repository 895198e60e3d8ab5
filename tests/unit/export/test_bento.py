"""Staging, committing and finding models in a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bentoml._internal.models import ModelStore

from export import store as bento
from export.errors import ExportError
from sdxl_bento import __version__
from sdxl_bento.integrity import describe
from sdxl_bento.manifest import BackendInfo, Manifest
from tests.support.manifests import HASH, manifest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own. BentoML keeps the first one it saw, so it is set directly."""
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(bento, "store", lambda: tmp_path / "models")
    return tmp_path


def stage(name: str = "tiny", data: bytes = b"weights", version: str = __version__) -> str:
    with bento.staging() as scratch:
        folder = scratch / "model"
        (folder / "base").mkdir(parents=True)
        (folder / "base" / "file").write_bytes(data)
        versions = manifest().versions.model_copy(update={"sdxl_bento": version})
        size = bento.content_bytes(folder)
        bare = manifest().base.model_copy(update={"components": {}})
        manifest(
            name=name, bytes=size, versions=versions, base=bare, refiner=None, loras=(),
            backends=(BackendInfo(backend="eager", device="any", versions={}),),
            files=describe(folder),
        ).save(folder)  # fmt: skip
        return bento.commit(folder, name, {"family": "sdxl"}, {"dtype": "fp16"})


def test_commit_is_what_bentoml_reads(home: Path) -> None:
    tag = stage()
    store = ModelStore(home / "models")
    model = store.get("tiny:latest")
    assert str(model.tag) == tag
    assert model.info.metadata == {"dtype": "fp16"}
    assert model.info.labels == {"family": "sdxl"}
    assert Path(model.path_of("base/file")).read_bytes() == b"weights"
    assert [str(item.tag) for item in store.list()] == [tag]
    assert not list((home / "tmp").glob("sdxl-export-*"))


def test_find(home: Path) -> None:
    assert bento.find("tiny", HASH, "fp16") is None
    first, second = stage(), stage()
    assert bento.find("tiny", HASH, "fp16") == second
    assert bento.find("tiny", "1" * 64, "fp16") is None
    assert bento.find("tiny", HASH, "bf16") is None
    # A damaged one does not count, nor does one that a broken-off copy has left.
    (home / "models" / "tiny" / second.partition(":")[2] / "base" / "file").write_bytes(b"")
    (home / "models" / "tiny" / "half").mkdir()
    assert bento.find("tiny", HASH, "fp16") == first
    assert (home / "models" / "tiny" / "latest").read_text() == first.partition(":")[2]


@pytest.mark.parametrize("damage", ["flip", "no digests"])
def test_find_passes_over_what_is_not_known_to_be_whole(home: Path, damage: str) -> None:
    folder = home / "models" / "tiny" / stage().partition(":")[2]
    if damage == "flip":
        (folder / "base" / "file").write_bytes(b"veights")  # of the same size
    else:
        Manifest.load(folder).model_copy(update={"files": {}}).save(folder)
    assert bento.find("tiny", HASH, "fp16") is None


def test_find_passes_over_other_schemas(home: Path) -> None:
    tag = stage()
    folder = home / "models" / "tiny" / tag.partition(":")[2]
    (folder / "manifest.json").write_text("{}")
    assert bento.find("tiny", HASH, "fp16") is None


def test_find_passes_over_other_versions_of_the_exporter(home: Path) -> None:
    stage(version="0.0.1")
    assert bento.find("tiny", HASH, "fp16") is None


def test_staging_is_removed_after_an_error(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bento.staging() as scratch:
        (scratch / "model").mkdir()
        raise KeyboardInterrupt
    assert not list((home / "tmp").glob("sdxl-export-*"))


def test_leftovers_of_the_dead_are_removed_those_of_the_living_stay(home: Path) -> None:
    dead = home / "tmp" / "sdxl-export-dead"
    lockless = home / "tmp" / "sdxl-export-lockless"
    for folder in (dead, lockless):
        (folder / "model").mkdir(parents=True)
    (dead / "lock").touch()
    script = (
        "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.flock(f,2);print('ok',flush=True);input()"
    )
    living = home / "tmp" / "sdxl-export-living"
    living.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(living / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "ok\n"
        with bento.staging():
            assert not dead.exists()
            assert not lockless.exists()
            assert living.exists()
        other.communicate("\n")


@pytest.mark.parametrize("name", ["Upper", "a b", "x" * 64, "", "a/b"])
def test_names_that_bentoml_refuses(name: str) -> None:
    with pytest.raises(ExportError, match="--name"):
        bento.check_name(name)


def test_a_colon_would_make_a_version() -> None:
    with pytest.raises(ExportError, match="--name"):
        bento.check_name("a:b")
