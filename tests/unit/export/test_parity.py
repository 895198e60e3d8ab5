"""What the verification of compiled parts and pictures sees, and what it lets pass."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from export.check import parity, pictures
from export.check.likeness import compare
from export.check.parity import least_psnr, pick_vae_dtype, verify_parts
from export.check.pictures import ssim
from export.compile import backends
from export.compile.compiler import parts_of
from export.embedded import WEIGHTS
from export.errors import VerificationError
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.manifest import BackendInfo, ImageFigure, Manifest
from sdxl_bento.serving.loading import folder_of

CPU = torch.device("cpu")
INFO = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="bf16", vae_dtype="fp32")


def test_equal_outputs_have_no_distance() -> None:
    output = torch.randn(2, 4, 8, 8)
    figure = compare("base/unet", output, output.clone())
    assert (figure.max_abs_error, figure.psnr_db) == (0.0, None)


def test_the_distance_is_in_db_of_the_references_range() -> None:
    expected = torch.linspace(-1, 1, 100)
    figure = compare("base/unet", expected + 0.02, expected)
    assert figure.psnr_db == pytest.approx(40.0, abs=0.01)
    assert figure.max_abs_error == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.full((4,), float("nan")), "base/unet: its output is not finite"),
        (torch.zeros(5), r"base/unet: its output is \[5\], not \[4\]"),
    ],
)
def test_what_cannot_be_compared_fails(found: torch.Tensor, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        compare("base/unet", found, torch.ones(4))


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
    figures = verify_parts(info, WEIGHTS, backends.pipelines_of(manifest), CPU)
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


def noise(seed: int, amount: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.clip(127 + amount * random.normal(0, 40, (48, 40, 3)), 0, 255)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    picture = noise(0)
    assert ssim(picture, picture) == pytest.approx(1.0)
    little, much = (ssim(picture, picture + noise(1, a) - 127) for a in (0.1, 1.0))
    assert 1.0 > little > 0.9 > much > 0.0


def test_ssim_of_flat_pictures_is_what_the_formula_gives() -> None:
    black, grey = np.zeros((16, 16, 3)), np.full((16, 16, 3), 100.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(black, grey) == pytest.approx(c1 / (100.0**2 + c1))


def test_pictures_are_compared_by_their_pixels() -> None:
    first = Image.new("RGB", (16, 16), (100, 100, 100))
    second = Image.new("RGB", (16, 16), (110, 110, 110))
    assert pictures.compare("a", 0, first, first).psnr_db is None
    assert pictures.compare("a", 0, first, second).psnr_db == pytest.approx(28.13, abs=0.01)


def figure(psnr: float | None) -> ImageFigure:
    return ImageFigure(prompt="a red circle", seed=3, psnr_db=psnr, ssim=0.9)


def test_a_picture_below_its_dtypes_threshold_fails_with_its_prompt() -> None:
    pictures._check(INFO, [figure(None), figure(20.0)])
    with pytest.raises(VerificationError, match=r"'a red circle' \(seed 3\) is 19\.9 dB.*20\.0 dB"):
        pictures._check(INFO, [figure(19.9)])


def test_pictures_that_show_less_than_the_originals_fail() -> None:
    right = {"colour": 1.0, "shape": 0.9}
    pictures._check_accuracy(INFO, {"colour": 0.95, "shape": 0.85}, right)
    with pytest.raises(VerificationError, match="shape is right in 50% of its pictures, in 90%"):
        pictures._check_accuracy(INFO, {"colour": 1.0, "shape": 0.5}, right)
