"""What a new export takes over from one of the same content."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.backends import add_backends
from export.compile.requests import same_build
from export.progress import Progress
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import folder_of

GPU = BackendInfo(
    backend="inductor",
    device="cuda:9.0",
    dtype="fp16",
    versions={"torch": "2.11.0"},
    artifacts={"base/unet": "compiled/inductor-cuda90-fp16/unet.pt2"},
    step_ms=30.0,
)
OLD = GPU.model_copy(update={"device": "cpu", "versions": {"torch": "1.0"}})


@pytest.fixture
def manifest(embedded_tag: str) -> Manifest:
    return Manifest.load(folder_of(embedded_tag))


@pytest.fixture
def earlier(manifest: Manifest, tmp_path: Path) -> Path:
    """A model of the same content with a backend for a GPU, and one for an older torch."""
    folder = tmp_path / "earlier"
    for info in (GPU, OLD):
        (folder / "compiled" / info.label).mkdir(parents=True)
        (folder / "compiled" / info.label / "unet.pt2").write_bytes(b"code")
    manifest.model_copy(update={"backends": (*manifest.backends, OLD, GPU)}).save(folder)
    return folder


def test_backends_for_other_machines_are_kept_and_outdated_ones_are_not(
    manifest: Manifest, earlier: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    made = add_backends(manifest, folder, (), [earlier], 0, Progress())
    assert [info.label for info in made.backends] == ["eager-any", GPU.label]
    assert (folder / "compiled" / GPU.label / "unet.pt2").read_bytes() == b"code"
    assert not (folder / "compiled" / OLD.label).exists()


def test_the_same_build_is_told_by_what_it_was_built_for() -> None:
    assert same_build(GPU, GPU.model_copy(update={"step_ms": 20.0, "bytes": 7}))
    for field, value in (("rows", (1,)), ("dtype", "bf16"), ("versions", {"torch": "2.12"})):
        assert not same_build(GPU, GPU.model_copy(update={field: value})), field
