"""What a folder holds, and what the pool makes of it when it changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from sdxl_bento.diffusion.lora import folder as lora_folder
from sdxl_bento.diffusion.lora.folder import look
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.errors import AdapterMismatch, AdapterNotFound
from tests.support import loras
from tests.support.loras import wait_ready


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_in_it_and_endings_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.safetensors", "sub/deep/a.SafeTensors", "sub/b.SAFETENSORS")
    touch(tmp_path, "风格.safetensors", ".hidden.safetensors", ".git/x.safetensors")
    touch(tmp_path, "notes.txt", "safetensors", "a.bin")
    found = look(tmp_path)
    assert list(found.files) == ["b", "风格", "sub/b", "sub/deep/a"]
    assert found.files["sub/b"].path == tmp_path / "sub/b.SAFETENSORS"
    assert found.files["b"].size_bytes == 1
    assert found.passed_over == {}


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.safetensors",
        "a.SAFETENSORS",
        os.fsdecode(b"\xff.safetensors"),
        "x\ny.safetensors",
    )
    touch(tmp_path, f"{'n' * 201}.safetensors")
    (tmp_path / "broken.safetensors").symlink_to("nowhere")
    found = look(tmp_path)
    assert list(found.files) == ["a"]
    assert found.files["a"].path.name == "a.safetensors"
    assert found.passed_over == {
        "a.SAFETENSORS": "a.safetensors has the same name",
        "\\udcff.safetensors": "its name has characters that cannot be shown",
        "x\\ny.safetensors": "its name has characters that cannot be shown",
        f"{'n' * 201}.safetensors": "its name is longer than 200 characters",
        "broken.safetensors": "it is no file, a broken link, or may not be read",
    }
    assert look(tmp_path / "gone").passed_over == {".": "there is no such folder"}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "loras/a.safetensors", "elsewhere/b.safetensors")
    (tmp_path / "loras/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "loras")
    assert list(look(tmp_path / "loras").files) == ["a", "more/b"]


def test_a_folder_that_is_too_deep(tmp_path: Path) -> None:
    touch(tmp_path, "1/2/3/4/5/6/7/8/a.safetensors", "1/2/3/4/5/6/7/8/9/b.safetensors")
    found = look(tmp_path)
    assert list(found.files) == ["1/2/3/4/5/6/7/8/a"]
    assert found.passed_over == {"1/2/3/4/5/6/7/8/9": "it is deeper than 8 folders"}


def test_a_folder_of_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_folder, "MOST_FILES", 2)
    touch(tmp_path, "a.safetensors", "b.safetensors", "c.safetensors")
    found = look(tmp_path)
    assert list(found.files) == ["a", "b"]
    assert found.passed_over == {"…": "more than 2 files"}


# The pool


@pytest.fixture(scope="module")
def targets() -> dict[str, nn.Module]:
    return loras.tiny_targets()


@pytest.fixture
def pool(targets: dict[str, nn.Module]) -> Iterator[LoraPool]:
    pool = LoraPool(targets, budget_bytes=1 << 30, on_loaded=lambda: None, pinned=("p",))
    yield pool
    pool.close()


def write(targets: dict[str, nn.Module], path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    return loras.write_peft(path, loras.factors(targets, "mid_block.*to_q$", seed=seed))


def test_files_come_and_go(pool: LoraPool, targets: dict[str, nn.Module], tmp_path: Path) -> None:
    first, second = write(targets, tmp_path / "a.safetensors"), tmp_path / "sub" / "b.safetensors"
    pool.scan(tmp_path)
    wait_ready(pool, ["a"])
    write(targets, second)
    first.unlink()
    assert [each.name for each in pool.listed()] == ["a"], "it was not looked at again"
    assert pool.outdated(["a"])
    pool.rescan()
    [listed] = pool.listed()
    assert (listed.name, listed.size_bytes) == ("sub/b", second.stat().st_size)
    assert not pool.outdated(["sub/b", "a"])
    with pytest.raises(AdapterNotFound, match="sub/b"):
        pool.ready(["a"])
    wait_ready(pool, ["sub/b"])
    assert not pool.is_loaded("a")
    assert pool.listed()[0].size_bytes == second.stat().st_size


def test_the_models_own_are_covered_and_come_back(
    pool: LoraPool, targets: dict[str, nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = write(targets, tmp_path / "model" / "a.safetensors", seed=1)
    cover = write(targets, tmp_path / "dir" / "a.safetensors", seed=2)
    pool.register("a", own)
    one = pool.fingerprints(["a"])
    pool.scan(cover.parent)
    assert pool.fingerprints(["a"]) != one
    assert "a.safetensors is used in place of the model's own LoRA" in caplog.text
    pool.rescan()
    assert len(caplog.records) == 1, "said once"
    cover.unlink()
    pool.rescan()
    assert pool.fingerprints(["a"]) == one
    own.unlink()
    pool.rescan()
    assert pool.names() == []
    write(targets, own, seed=1)
    pool.rescan()
    assert pool.names() == ["a"]


def test_a_file_that_changes_without_a_look_is_loaded_once(
    pool: LoraPool, targets: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = write(targets, tmp_path / "a.safetensors", seed=1)
    pool.scan(tmp_path)
    write(targets, path, seed=2)
    wait_ready(pool, ["a"])
    assert pool.ready(["a"])
    assert pool.loads == 1


def test_pinned_ones_are_loaded_at_the_start(
    pool: LoraPool, targets: dict[str, nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool.load_pinned()
    assert "SDXL_LORA_PINNED names p, which is no adapter here" in caplog.text
    path = write(targets, tmp_path / "p.safetensors")
    path.write_bytes(b"x")
    pool.scan(tmp_path)
    for sound in (False, True):
        if sound:
            write(targets, path)
            pool.rescan()
        pool.load_pinned()
        pool._loader.submit(lambda: None).result(10)
        assert pool.is_loaded("p") is sound
    assert "The pinned LoRA p is not loaded" in caplog.text


def test_what_is_left_out_is_told(
    pool: LoraPool, targets: dict[str, nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = loras.factors(targets, "mid_block.*to_q$")
    notes = {"unet.conv_in.diff_b": tensors[next(iter(tensors))].clone()}
    loras.write_peft(tmp_path / "a.safetensors", tensors | notes)
    pool.scan(tmp_path)
    assert pool.listed()[0].skipped == ()
    wait_ready(pool, ["a"])
    assert pool.listed()[0].skipped == ("unet.conv_in.diff_b",)
    assert "LoRA a: 1 tensors have no effect here: unet.conv_in.diff_b" in caplog.text


def test_a_file_that_may_not_be_read(
    pool: LoraPool,
    targets: dict[str, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    write(targets, tmp_path / "a.safetensors")
    pool.scan(tmp_path)
    monkeypatch.setattr("sdxl_bento.diffusion.lora.pool.fingerprint_of", forbidden)
    with pytest.raises(AdapterMismatch, match="Permission denied"):
        pool.fingerprints(["a"])
