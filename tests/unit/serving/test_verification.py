"""What a real model does whose files are not as they were exported."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sdxl_bento import integrity
from sdxl_bento.config import Settings, VerifyMode
from sdxl_bento.diffusion.conditioning import PromptCache
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.integrity import Checker, describe
from sdxl_bento.manifest import Manifest
from sdxl_bento.serving.loading import folder_of, load_folder
from sdxl_bento.serving.verification import Verification
from tests.support.damage import flip_bit
from tests.support.loaded_models import CPU

UNET = "base/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(embedded_tag: str, tmp_path: Path) -> Path:
    """A copy of the embedded model. Its files are links, so a test replaces what it changes."""
    copy = tmp_path / "model"
    shutil.copytree(folder_of(embedded_tag), copy, copy_function=os.link)
    return copy


def load(folder: Path, verify: VerifyMode = "load") -> Verification:
    verification = Verification(verify)
    settings = Settings(backend="eager", verify=verify)
    tags = ("tiny", "tiny:1")
    loaded = load_folder(
        "tiny", tags, folder, settings, CPU, PromptCache(0), lambda: None, verification
    )
    loaded.served.adapters.close()
    return verification


@pytest.mark.parametrize(
    "name",
    [
        UNET,
        "base/text_encoder/model.safetensors",
        "refiner/text_encoder_2/model.safetensors",
        "refiner/vae/diffusion_pytorch_model.safetensors",
        "base/unet/config.json",
        "base/scheduler/scheduler_config.json",
        "base/tokenizer_2/vocab.json",
        "base/model_index.json",
        "loras/striped.safetensors",
    ],
)
def test_one_bit_is_refused(folder: Path, name: str) -> None:
    flip_bit(folder / name)
    with pytest.raises(ConfigurationError, match="is damaged: ") as caught:
        load(folder)
    assert f"{name} is not what was exported" in str(caught.value)
    assert "--force" in str(caught.value)


@pytest.mark.parametrize(("place", "block"), [(0.0, 0), (0.55, 3), (1 - 1e-7, 5)])
def test_large_files_are_compared_in_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: float, block: int
) -> None:
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 1 << 20)
    manifest = Manifest.load(folder).model_copy(update={"files": describe(folder)})
    blocks = manifest.files[UNET].blocks
    assert len(blocks) == 6  # of 6.2 million bytes
    assert blocks[5] == sha256((folder / UNET).read_bytes()[5 << 20 :]).hexdigest()
    assert damage_of(folder, manifest) == []
    flip_bit(folder / UNET, place)
    (words,) = damage_of(folder, manifest)
    assert words == f"{UNET} is not what was exported (sha256 of blocks of 1048576 bytes: {block})"
    (folder / UNET).write_bytes((folder / UNET).read_bytes() + b"x")
    (words,) = damage_of(folder, manifest)
    assert words.startswith(f"{UNET} has ")


def damage_of(folder: Path, manifest: Manifest) -> list[str]:
    with Checker(folder, manifest) as checker:
        return checker.damage(lambda item: True)


def cut(folder: Path) -> str:
    data = (folder / UNET).read_bytes()
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(data[:-100])
    return f"{UNET} has {len(data) - 100} bytes, not {len(data)}"


def take_away(folder: Path) -> str:
    (folder / "base/tokenizer/merges.txt").unlink()
    return "base/tokenizer/merges.txt is missing"


def add(folder: Path) -> str:
    (folder / "base/tokenizer/added_tokens.json").write_text("{}")
    return "base/tokenizer/added_tokens.json was not exported with the model"


def edit(*keys: str, value: object) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        path = folder / "manifest.json"
        content = inner = json.loads(path.read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.unlink()
        path.write_text(json.dumps(content))
        return "manifest.json is not as it was written"

    return change


def contradict(folder: Path) -> str:
    """A manifest that was written so, by whatever wrote it."""
    manifest = Manifest.load(folder)
    lora = manifest.loras[0].model_copy(update={"sha256": "0" * 64})
    manifest.model_copy(update={"loras": (lora, *manifest.loras[1:])}).save(folder)
    return f"manifest.json has two digests for {lora.path}"


@pytest.mark.parametrize(
    "change",
    [
        cut,
        take_away,
        add,
        contradict,
        edit("base", "components", "unet", "sha256", value="0" * 64),
        edit("files", UNET, "sha256", value="0" * 64),
        edit("base", "width", value=256),
        edit("files", value={}),
    ],
)
def test_other_damage_is_refused(folder: Path, change: Callable[[Path], str]) -> None:
    words = change(folder)
    with pytest.raises(ConfigurationError) as caught:
        load(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mode"), [(UNET, "load"), (UNET, "off"), ("loras/striped.safetensors", "off")]
)
def test_a_link_out_of_the_model_is_refused_in_every_mode(
    folder: Path, tmp_path: Path, name: str, mode: VerifyMode
) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigurationError, match="link"):
        load(folder, mode)


def test_nothing_is_read_if_that_is_off(folder: Path) -> None:
    flip_bit(folder / UNET)
    edit("base", "components", "unet", "sha256", value="0" * 64)(folder)
    assert load(folder, "off").damaged == []


def test_in_the_background_damage_is_found_after_loading(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_bit(folder / UNET)
    verification = load(folder, "background")
    assert verification.damaged == []
    verification.start()
    verification.join()
    assert f"sdxl-embedded is damaged: {UNET} is not what was exported" in verification.reason
    assert len(verification.damaged) == 1
    assert verification.reason in caplog.text


def test_in_the_background_a_whole_model_stays(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        verification = load(folder, "background")
        verification.start()
        verification.join()
    assert (verification.reason, verification.damaged) == ("", [])
    assert "sdxl-embedded is as it was exported" in caplog.text


def test_what_is_made_while_serving_is_no_damage(folder: Path) -> None:
    for name in ("cache", "profiles"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "file").write_bytes(b"new")
    (folder / "base/unet/.nfs01").write_bytes(b"of the file system")
    assert load(folder).damaged == []


def test_a_model_from_before_there_were_digests_of_files(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its manifest has digests of components and adapters, and these are compared."""
    content: Any = Manifest.load(folder).model_dump(mode="json")
    del content["files"]
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(content))
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        assert load(folder).damaged == []
    assert "exported before digests of all files were kept" in caplog.text
    for name in (UNET, "loras/striped.safetensors"):
        whole = (folder / name).read_bytes()
        flip_bit(folder / name)
        item = name if name.startswith("loras") else str(Path(name).parent)
        with pytest.raises(ConfigurationError, match=f"{item} is not what was exported"):
            load(folder)
        (folder / name).write_bytes(whole)


def test_an_export_describes_every_file_and_lets_others_read_them(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert manifest.files == describe(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    made = {name for name in there if name.startswith(("cache/", "profiles/"))}
    assert set(manifest.files) == there - made - {"manifest.json", "model.yaml"}
    for name in manifest.files:
        assert (folder / name).stat().st_mode & stat.S_IROTH
