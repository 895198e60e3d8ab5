"""What a source's name leads to, of those that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.embedded import WEIGHTS
from export.errors import SourceError, UnsafeSourceError
from export.model.inspection import read_pipeline
from export.source import resolution
from export.source.downloads import Workspace
from sdxl_bento.config import ExportSettings

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_embedded() -> None:
    base, refiner, loras = resolution.embedded()
    assert (base.kind, base.location, base.name) == ("embedded", "embedded", "sdxl-embedded")
    assert (refiner.folder.root / "unet").is_dir()
    assert {path.stem for path in loras} >= {"striped", "outlined"}


@pytest.mark.parametrize("text", [str(WEIGHTS / "base"), (WEIGHTS / "base").as_uri()])
def test_folder_records_its_name_only(workspace: Workspace, text: str) -> None:
    source = resolution.resolve(text, workspace)
    assert (source.kind, source.location, source.revision) == ("folder", "base", None)
    assert source.name == "base"


@pytest.mark.parametrize("text", ["/no/such/folder", "no-such-name", "a/b/c", "file:///no/such"])
def test_names_nothing(workspace: Workspace, text: str) -> None:
    with pytest.raises(SourceError, match="neither a folder, a file nor a hub id"):
        resolution.resolve(text, workspace)


def test_unknown_scheme(workspace: Workspace) -> None:
    with pytest.raises(SourceError, match=r"ftp://x/y(?s:.)*s3://") as error:
        resolution.resolve("ftp://me:secret@x/y?token=secret", workspace)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["model.ckpt", "model.PT", "model.bin", "model.pickle"])
def test_pickled_checkpoint(workspace: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsafeSourceError, match="pickled checkpoint"):
        resolution.resolve(str(tmp_path / name), workspace)


@pytest.mark.parametrize(
    "text",
    ["https://x.y/model.ckpt", "s3://bucket/model.zip", "hf://a/b/model.pt", "a/b/model.bin"],
)
def test_refused_by_its_name_before_anything_is_asked(workspace: Workspace, text: str) -> None:
    with pytest.raises(SourceError, match=r"pickled checkpoint|an archive"):
        resolution.resolve(text, workspace)


def test_a_file_of_another_kind(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(SourceError, match=r"a \.txt file"):
        resolution.resolve(str(tmp_path / "notes.txt"), workspace)


def test_folder_of_the_hub_cache_may_link_to_its_blobs(
    workspace: Workspace, base: Any, tmp_path: Path
) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    base.path.rename(repository / "snapshots" / COMMIT)
    folder = repository / "snapshots" / COMMIT
    (folder / "unet" / "config.json").rename(repository / "blobs" / "x")
    (folder / "unet" / "config.json").symlink_to("../../../blobs/x")
    read_pipeline(resolution.resolve(str(folder), workspace).folder, "base", None)


class TestMounted:
    """As KServe mounts what its users name."""

    def test_claim(self, workspace: Workspace, base: Any, settings: ExportSettings) -> None:
        settings.pvc_mount.mkdir()
        base.path.rename(settings.pvc_mount / "sdxl")
        source = resolution.resolve("pvc://my-claim/sdxl", workspace)
        assert (source.kind, source.location) == ("mounted", "pvc://my-claim/sdxl")
        assert source.name == "sdxl"
        read_pipeline(source.folder, "base", None)

    def test_claim_of_which_the_path_itself_is_mounted(
        self, workspace: Workspace, base: Any, settings: ExportSettings
    ) -> None:
        base.path.rename(settings.model_mount)
        source = resolution.resolve("pvc://my-claim/sdxl", workspace)
        read_pipeline(source.folder, "base", None)

    def test_claim_that_is_not_there(self, workspace: Workspace, settings: ExportSettings) -> None:
        settings.pvc_mount.mkdir()
        with pytest.raises(SourceError, match="the claim 'my-claim' mounted at"):
            resolution.resolve("pvc://my-claim/sdxl", workspace)
        with pytest.raises(UnsafeSourceError, match="leads out"):
            resolution.resolve("pvc://my-claim/../etc", workspace)

    def test_folder(self, workspace: Workspace, base: Any, settings: ExportSettings) -> None:
        base.path.rename(settings.model_mount)
        source = resolution.resolve(str(settings.model_mount), workspace)
        assert (source.kind, source.location) == ("mounted", str(settings.model_mount))


def test_every_variable_is_documented() -> None:
    text = (ROOT / "docs" / "guides" / "export.md").read_text("utf-8")
    for field in ExportSettings.model_fields.values():
        assert f"`{field.validation_alias}`" in text


class TestNamed:
    """What is exported when the command names nothing."""

    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("STORAGE_URI", "MODEL_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SDXL_EXPORT_MODEL_MOUNT", str(tmp_path / "mounted"))

    def test_nothing(self) -> None:
        with pytest.raises(SourceError, match="STORAGE_URI or MODEL_ID"):
            resolution.source_or_default("")

    def test_the_order(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "mounted").mkdir()
        assert resolution.source_or_default("") == str(tmp_path / "mounted")
        monkeypatch.setenv("MODEL_ID", "organisation/model")
        assert resolution.source_or_default("") == "organisation/model"
        monkeypatch.setenv("STORAGE_URI", "s3://bucket/sdxl")
        assert resolution.source_or_default("") == "s3://bucket/sdxl"
        assert resolution.source_or_default("embedded") == "embedded"
        monkeypatch.setenv("STORAGE_URI", "")
        assert resolution.source_or_default("") == "organisation/model"
