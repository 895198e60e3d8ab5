"""The benchmark of full-size SDXL, run on a miniature; its bookkeeping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch

from benchmarks.contenders.on_gpu import Job, count_flops
from benchmarks.full_size import SDXL
from benchmarks.gpu import aims
from export.model.graphs import unet_example

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    document: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return document


@pytest.mark.slow
def test_a_miniature_is_measured_and_added_to_earlier_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    earlier = {"runs": [{"contender": "eager", "size": 64}, {"contender": "eager", "size": 512}]}
    path.write_text(json.dumps(earlier))
    options = ("--device", "cpu", "--tiny", "--runs", "1", "--batch", "2", "--json", str(path))
    document = run(*options, "--contenders", "eager", "graphs")
    assert json.loads(path.read_text()) == document
    found = {(one["contender"], one["size"]): one for one in document["runs"]}  # type: ignore[attr-defined]
    assert set(found) == {("eager", 512), ("eager", 64), ("graphs", 64)}
    for key in (("eager", 64), ("graphs", 64)):
        figures = found[key]
        assert "error" not in figures
        assert figures["step_ms"] > 0
        assert figures["image_30_steps_s"] > figures["step_ms"] / 1e3
    assert found["eager", 64]["psnr_db"] is None  # float32 on a CPU, the reference itself
    assert found["graphs", 64]["psnr_db"] > 60
    assert set(found["graphs", 64]["attention_ms"]) == {"native", "_native_flash"}


def test_operations_of_the_full_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SDXL.unet)
        vae = diffusers.AutoencoderKL(**SDXL.vae)
    job = Job("eager", unet, vae, torch.device("meta"), 1024, (2, 8), tmp_path, autotune=False)
    found = count_flops(job, unet_example("base", unet, 1, 128, 128))
    # The physics in the docstring of `benchmarks/gpu.py`.
    assert found["unet"] == pytest.approx(6.76e12, rel=0.01)
    assert found["decode"] == pytest.approx(10.5e12, rel=0.01)


def test_a_contender_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "unet").write_text("no folder")
    options = ("--device", "cpu", "--tiny", "--work", str(tmp_path))
    [failed] = run(*options, "--contenders", "inductor")["runs"]  # type: ignore[misc, attr-defined]
    assert "FileExistsError" in failed["error"]


def test_aims_take_the_best_of_ours() -> None:
    runs = [
        {"contender": "inductor", "size": 1024, "image_30_steps_s": 1.0, "decode_ms": 41},
        {"contender": "inductor-static", "size": 1024, "image_30_steps_s": 0.9, "decode_ms": 39},
        {"contender": "eager", "size": 1024, "image_30_steps_s": 0.1},
        {"contender": "inductor-fp8", "size": 1024, "error": "none"},
    ]
    assert [one["value"] for one in aims(runs)] == [0.9, None, 39, None]
    assert [one["reached"] for one in aims(runs)] == [True, None, True, None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so() -> None:
    assert run()["skipped"] == "no CUDA device"
