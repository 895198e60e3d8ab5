"""What the verification of compiled parts and pictures sees, and what it lets pass."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from export import backends
from export.check import parity
from export.check.decoder_dtype import pick_vae_dtype
from export.check.parity import least_psnr, verify_parts
from export.embedded import WEIGHTS
from export.model.parts import parts_of
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import folder_of

CPU = torch.device("cpu")
INFO = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="bf16", vae_dtype="fp32")


def test_each_part_has_the_threshold_of_what_it_computes_in() -> None:
    assert least_psnr(INFO, "base/unet") == 35.0
    assert least_psnr(INFO, "base/vae_decoder") == 60.0
    quantized = INFO.model_copy(update={"quantization": "int8"})
    assert least_psnr(quantized, "base/unet_slots") == 25.0
    assert least_psnr(quantized, "base/vae_decoder") == 60.0


@dataclass
class Reads:
    """Originals that were read, and those that are still held when a part is loaded."""

    folders: list[Path]
    held: int


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Counts, and runs the original itself in a compiled part's place."""
    seen, alive = Reads([], 0), []
    real = parity.load_component

    def counted(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        module = real(folder, dtype, device)
        seen.folders.append(folder.relative_to(WEIGHTS))
        alive.append(weakref.ref(module))
        return module

    class Uncompiled:
        def load(self, path: Path, options: PartOptions) -> Part:
            gc.collect()
            seen.held += sum(ref() is not None for ref in alive)
            module = parity._as_part(path.as_posix(), real(options.weights, torch.float32, CPU))
            return Called(module)

    monkeypatch.setattr(parity, "load_component", counted)
    monkeypatch.setattr(parity, "runtime", lambda _: Uncompiled())
    return seen


class Called:
    """A module as a part."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, inputs: Any) -> torch.Tensor:
        output: torch.Tensor = self._module(**inputs)
        return output

    def unload(self) -> None: ...


def test_an_original_is_read_once_and_not_held_beside_a_part(
    reads: Reads, embedded_tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(folder_of(embedded_tag))
    parts = [*parts_of("base"), *parts_of("refiner")]
    info = INFO.model_copy(update={"rows": (1, 2), "artifacts": {part: part for part in parts}})
    figures = verify_parts(info, WEIGHTS, manifest.pipelines, CPU)
    assert [figure.part for figure in figures] == parts
    assert all(figure.psnr_db is None or figure.psnr_db > 120 for figure in figures)
    components = {Path(role, name) for role in ("base", "refiner") for name in ("unet", "vae")}
    assert sorted(reads.folders) == sorted(components)
    assert reads.held == 0
    monkeypatch.setattr(backends, "runtime", parity.runtime)
    assert backends.step_ms(info, manifest, WEIGHTS, CPU) > 0
    assert len(reads.folders) == len(components), "a timing needs the config alone"


def vae(folder: Path, scale: float) -> Path:
    """The embedded VAE, whose decoder's first activations are so much larger.

    The normalisation that follows takes the scale out again, so in float32 it is the same VAE.
    """
    model = AutoencoderKL.from_pretrained(WEIGHTS / "base" / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        resnet = model.decoder.mid_block.resnets[0]
        resnet.conv1.weight *= scale
        resnet.conv1.bias *= scale
    path = folder / "vae"
    model.save_pretrained(path)
    return path


def test_a_decoder_that_keeps_in_range_runs_in_half_precision(tmp_path: Path) -> None:
    assert pick_vae_dtype(vae(tmp_path, 1.0), "fp16", CPU) == "fp16"


def test_a_decoder_that_overflows_does_not(tmp_path: Path) -> None:
    assert pick_vae_dtype(vae(tmp_path, 1e6), "fp16", CPU) in ("bf16", "fp32")


def test_float32_is_float32(tmp_path: Path) -> None:
    assert pick_vae_dtype(tmp_path / "not read", "fp32", CPU) == "fp32"
