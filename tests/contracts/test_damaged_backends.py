"""Compiled parts that are damaged, or compute something else here, give way to the next backend."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdxl_bento.backends.parts import Part, PartOptions, runtime
from sdxl_bento.config import Settings
from sdxl_bento.diffusion.conditioning import PromptCache
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.integrity import digest
from sdxl_bento.manifest import Manifest
from sdxl_bento.serving import compiled_parts
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.loading import folder_of, load_folder
from tests.support.damage import flip_bit
from tests.support.loaded_models import CPU


@pytest.fixture
def folder(compiled_tag: str, tmp_path: Path) -> Path:
    """A copy of the compiled model. Its files are links, so a test replaces what it changes."""
    copy = tmp_path / "model"
    shutil.copytree(folder_of(compiled_tag), copy, copy_function=os.link)
    return copy


@pytest.fixture
def first(folder: Path) -> str:
    """The label of the OpenVINO backend, which depends on the CPU."""
    infos = Manifest.load(folder).backends
    return next(info.label for info in infos if info.backend == "openvino")


def load(folder: Path, **settings: Any) -> Loaded:
    given = Settings(**{"backend": "openvino", **settings})
    loaded = load_folder(
        "tiny", ("tiny", "tiny:1"), folder, given, CPU, PromptCache(0), lambda: None
    )
    loaded.served.adapters.close()
    return loaded


def test_every_part_has_its_check_and_its_digests(folder: Path) -> None:
    manifest = Manifest.load(folder)
    for info in manifest.backends[1:]:
        assert set(info.probes) == set(info.artifacts)
        assert info.probe_outputs in manifest.files
        assert set(info.artifacts.values()) <= set(manifest.files)
    there = {path.relative_to(folder).as_posix() for path in (folder / "compiled").rglob("*.*")}
    assert there <= set(manifest.files)


@pytest.mark.parametrize("file", ["base_unet.bin", "base_unet_slots.xml", "probes.safetensors"])
def test_a_damaged_part_is_not_used(
    folder: Path, first: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    flip_bit(folder / "compiled" / first / file)
    damage = f"compiled/{first}/{file} is not what was exported"
    loaded = load(folder)
    assert loaded.info is None
    unused = loaded.summary(default=True).unused_backends
    assert damage in unused[first]
    assert str(folder) not in unused[first]
    assert f"{first} is not used: it cannot be loaded: " in caplog.text
    assert damage in caplog.text
    with pytest.raises(ConfigurationError, match=damage):
        load(folder, allow_fallback=False)


def test_a_damaged_cache_is_made_anew(
    folder: Path, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder)
    blobs = sorted((folder / "cache").glob("*.blob"))
    assert blobs
    for blob in blobs:
        flip_bit(blob)
    loaded = load(folder)
    assert loaded.info is not None
    assert loaded.info.label == first
    assert loaded.misfits == ()
    assert caplog.text.count("has changed since it was written; it is derived again") == len(blobs)
    assert sorted((folder / "cache").glob("*.blob")) == blobs
    notes = json.loads((folder / "cache" / "digests.json").read_text())
    assert notes == {blob.name: digest(blob) for blob in blobs}


def test_a_part_that_computes_something_else_here_is_not_used(
    folder: Path, first: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unloaded: list[str] = []

    class Spoiled:
        def __init__(self, part: Part, name: str) -> None:
            self.part, self.name = part, name

        def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return self.part(inputs) * (1.1 if self.name == "base_unet_slots" else 1.0)

        def unload(self) -> None:
            unloaded.append(self.name)
            self.part.unload()

    def spoil(name: Any) -> Any:
        def read(path: Path, options: PartOptions) -> Part:
            part = runtime(name).load(path, options)
            return Spoiled(part, path.stem) if name == "openvino" else part

        return SimpleNamespace(load=read)

    monkeypatch.setattr(compiled_parts, "runtime", spoil)
    manifest = Manifest.load(folder)  # which has the fastest first, and that varies
    eager, *compiled = manifest.backends
    compiled.sort(key=lambda info: info.backend != "openvino")
    manifest.model_copy(update={"backends": (eager, *compiled)}).save(folder)
    loaded = load(folder, backend="auto")
    assert loaded.info is not None
    assert loaded.info.backend == "onnx"
    reason = loaded.summary(default=True).unused_backends[first]
    assert reason.startswith("base/unet_slots fails its self-check: its output is ")
    assert f"{first} is not used: {reason}; {loaded.info.label} runs instead" in caplog.text
    assert len(unloaded) == 5
