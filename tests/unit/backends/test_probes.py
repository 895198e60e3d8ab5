"""The self-check of compiled parts: what it runs, and what it does not let pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export.model.graphs import UNetRows
from sdxl_bento.backends.probes import failed_probe, probe_inputs
from sdxl_bento.manifest import BackendInfo, Probe
from tests.support.small_unet import small_unet

PART = "base/unet"
PROBE = Probe(rows=1, height=8, width=8, psnr_db=35.0)
CPU = torch.device("cpu")


class Part:
    """The original, with an error of its own."""

    def __init__(self, spoil: Any = lambda output: output) -> None:
        self.module, self.spoil = UNetRows(small_unet()), spoil

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = self.spoil(self.module(**inputs))
        return output

    def unload(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


def failure(folder: Path, unet: Any, part: Part | None, **changes: Any) -> str:
    info = BackendInfo(
        backend="onnx", device="cpu", versions={}, probes={PART: PROBE}, probe_outputs="probes"
    )
    if not (folder / "probes").exists():
        inputs = probe_inputs(PART, PROBE, unet, 4, CPU)
        save_file({PART: Part()(inputs)}, folder / "probes")
    parts: Any = {PART: part} if part is not None else {}
    info = info.model_copy(update=changes)
    return failed_probe(info, folder, parts, {"base": unet}, 4, CPU)


def fail(output: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such kernel")


def test_a_sound_part_passes(tmp_path: Path, unet: Any) -> None:
    assert failure(tmp_path, unet, Part()) == ""
    assert failure(tmp_path, unet, Part(lambda output: output.to(torch.bfloat16))) == ""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda output: output + 0.2 * output.std(), "dB from the original's, 35 dB are needed"),
        (lambda output: output.roll(1, -1), "dB from the original's"),
        (lambda output: output * float("nan"), "its output is not finite"),
        (lambda output: output[:, :1], "its output is [1, 1, 8, 8], not [1, 4, 8, 8]"),
        (fail, "no such kernel"),
    ],
)
def test_another_result_fails(tmp_path: Path, unet: Any, spoil: Any, words: str) -> None:
    found = failure(tmp_path, unet, Part(spoil))
    assert found.startswith("base/unet fails its self-check: ")
    assert words in found


def test_a_check_that_cannot_be_made_fails(tmp_path: Path, unet: Any) -> None:
    assert "its self-check of base/unet is incomplete" in failure(tmp_path, unet, None)
    (tmp_path / "probes").write_bytes(b"cut")
    assert "its self-check cannot be read" in failure(tmp_path, unet, Part())


def test_an_earlier_export_has_no_probes(tmp_path: Path, unet: Any) -> None:
    assert failure(tmp_path, unet, Part(fail), probes={}, probe_outputs=None) == ""


def test_adapters_take_part(unet: Any) -> None:
    inputs = probe_inputs("base/unet_slots", PROBE, unet, 4, CPU)
    (row,) = inputs["slot"].tolist()
    assert inputs["down"][row].abs().sum() > 0
    assert inputs["up"][row].abs().sum() > 0
    assert probe_inputs("base/vae_decoder", PROBE, unet, 4, CPU)["latents"].shape == (1, 4, 8, 8)
