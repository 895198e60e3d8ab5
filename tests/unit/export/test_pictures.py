"""What the verification of whole pictures refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.check import pictures
from export.check.pictures import (
    LEAST_ACCURACY,
    LEAST_PSNR_DB,
    LEAST_PSNR_QUANTIZED_DB,
    PROMPTS,
    check_accuracy,
    check_figures,
    verify_pictures,
)
from export.errors import VerificationError
from sdxl_bento.manifest import BackendInfo, ImageFigure

INFO = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="bf16", vae_dtype="fp32")


def figure(psnr: float | None) -> ImageFigure:
    return ImageFigure(prompt="a red circle", seed=3, psnr_db=psnr, ssim=0.9)


def test_a_picture_below_its_dtypes_threshold_fails_with_its_prompt() -> None:
    check_figures(INFO, [figure(None), figure(20.0)])
    with pytest.raises(VerificationError, match=r"'a red circle' \(seed 3\) is 19\.9 dB.*20\.0 dB"):
        check_figures(INFO, [figure(19.9)])


def test_pictures_that_show_less_than_the_originals_fail() -> None:
    right = {"colour": 1.0, "shape": 0.9}
    check_accuracy(INFO, {"colour": 0.95, "shape": 0.85}, right)
    with pytest.raises(VerificationError, match="shape is right in 50% of its pictures, in 90%"):
        check_accuracy(INFO, {"colour": 1.0, "shape": 0.5}, right)


def picture(error: float = 0.0) -> Image.Image:
    """Grey, with an error of so many levels in every pixel."""
    return Image.fromarray(np.full((16, 16, 3), 100 + error).astype(np.uint8))


def levels(psnr_db: float) -> float:
    """The error that leaves a picture so far from the original's."""
    return float(255 * 10 ** (-psnr_db / 20))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Image.Image]]:
    """The pictures that each backend gives, to be changed; those of no embedded model."""
    by_backend = {name: [picture()] * len(PROMPTS) for name in ("eager", INFO.label)}

    def draw(_folder: Path, backend: str, prompts: Sequence[str]) -> list[Image.Image]:
        assert list(prompts) == list(PROMPTS[: len(prompts)])
        return by_backend.get(backend, by_backend[INFO.label])[: len(prompts)]

    monkeypatch.setattr(pictures, "draw", draw)
    return by_backend


class Folder:
    """A manifest of a model that is not the embedded one."""

    class source:
        kind = "folder"


def verify(info: BackendInfo = INFO, count: int = len(PROMPTS)) -> pictures.Verdict:
    manifest: Any = Folder()
    return verify_pictures(info, manifest, Path(), count)


def test_equal_pictures_pass(drawn: dict[str, list[Image.Image]]) -> None:
    verdict = verify()
    assert [figure.prompt for figure in verdict.images] == list(PROMPTS)
    assert [figure.seed for figure in verdict.images] == list(range(len(PROMPTS)))
    assert all(figure.psnr_db is None for figure in verdict.images)
    assert len(verify(count=2).images) == 2
    assert verify(count=0) == pictures.Verdict((), {})


@pytest.mark.parametrize("wrong", range(len(PROMPTS)))
def test_each_picture_is_compared(drawn: dict[str, list[Image.Image]], wrong: int) -> None:
    drawn[INFO.label][wrong] = picture(100)
    with pytest.raises(VerificationError, match=rf"{PROMPTS[wrong]}' \(seed {wrong}\)"):
        verify()


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        *(({"dtype": dtype}, least) for dtype, least in LEAST_PSNR_DB.items()),
        ({"dtype": "fp32", "quantization": "int8"}, LEAST_PSNR_QUANTIZED_DB),
    ],
)
def test_each_threshold_of_a_picture(
    drawn: dict[str, list[Image.Image]], fields: dict[str, Any], least: float
) -> None:
    info = INFO.model_copy(update=fields)
    drawn[INFO.label][-1] = picture(np.floor(levels(least)))
    verify(info)
    drawn[INFO.label][-1] = picture(np.ceil(levels(least) + 0.01))
    with pytest.raises(VerificationError, match=f"at least {least} dB are needed"):
        verify(info)


def test_each_property_must_be_shown_as_often_as_by_the_original() -> None:
    right = {"colour": 1.0, "shape": 0.8, "count": 0.5}
    check_accuracy(INFO, {name: share * LEAST_ACCURACY for name, share in right.items()}, right)
    for name, share in right.items():
        with pytest.raises(VerificationError, match=f"{name} is right in"):
            check_accuracy(INFO, right | {name: share * LEAST_ACCURACY - 0.01}, right)
