"""Compiled targets through the real command and a real server."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from export.check import pictures
from export.check.pictures import verify_pictures
from export.errors import VerificationError
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import folder_of
from tests.conftest import Exported
from tests.support.server import Server, serve

ROOT = Path(__file__).resolve().parents[2]
GENERATE = {"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 12}


def export(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"BENTOML_HOME": str(home)} if home else {})
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_each_backend_is_verified_by_parts_and_pictures(compiled_tag: str) -> None:
    manifest = Manifest.load(folder_of(compiled_tag))
    compiled = [info for info in manifest.backends if info.backend != "eager"]
    assert {info.backend for info in compiled} == {"onnx", "openvino"}
    assert [info.step_ms for info in compiled] == sorted(info.step_ms or 0 for info in compiled)
    for info in compiled:
        assert len(info.parity) == len(info.artifacts) == 5
        assert len(info.images) == 4
        assert all(image.ssim > 0.8 for image in info.images)
        assert info.accuracy["colour"] >= 0.9
        assert info.compile_seconds > 0


def test_the_same_again_compiles_nothing(compiled_tag: str) -> None:
    done = export("embedded", "--name", "sdxl-compiled", "--target", "openvino,onnx")
    assert done.stdout.strip() == compiled_tag
    assert "has the same content already" in done.stderr


def test_what_was_compiled_before_is_taken_over(
    compiled_export: Exported,
) -> None:
    assert "onnx-cpu-fp32 has been compiled before: taken over" in compiled_export.errors
    assert "refiner for onnx" not in compiled_export.errors
    assert "Compile base and refiner for openvino" in compiled_export.errors
    assert "from the graphs of onnx-cpu-fp32" in compiled_export.errors


def test_a_stored_model_can_be_verified_again(compiled_tag: str) -> None:
    done = export("verify", compiled_tag, "--pictures", "1", "--json")
    assert done.returncode == 0, done.stderr
    figures = {info["backend"]: info for info in json.loads(done.stdout)}
    assert set(figures) == {"onnx", "openvino"}
    assert all(len(info["parity"]) == 5 for info in figures.values())
    assert "base/unet_slots" in done.stderr


def broken_copy(compiled_tag: str, home: Path, backend: str) -> tuple[Path, BackendInfo]:
    """The model as `broken:v1` in a store of its own, with one compiled backend, to be spoilt."""
    source = folder_of(compiled_tag)
    copy = home / "models" / "broken" / "v1"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("cache"))
    (copy.parent / "latest").write_text("v1")
    written = (copy / "model.yaml").read_text()
    written = written.replace("name: sdxl-compiled", "name: broken")
    (copy / "model.yaml").write_text(written.replace(f"version: {source.name}", "version: v1"))
    manifest = Manifest.load(copy)
    info = next(info for info in manifest.backends if info.backend == backend)
    manifest.model_copy(update={"backends": (manifest.backends[0], info)}).save(copy)
    return copy, info


def test_verify_finds_what_is_no_longer_the_model(compiled_tag: str, tmp_path: Path) -> None:
    """A part whose weights have changed on disk."""
    copy, onnx = broken_copy(compiled_tag, tmp_path, "onnx")
    data = next((copy / "compiled" / onnx.label).glob("base_vae_decoder*.data"))
    content = bytearray(data.read_bytes())
    middle = len(content) // 2 // 4 * 4
    content[middle : middle + 40_000] = np.full(10_000, 0.3, np.float32).tobytes()
    data.write_bytes(content)
    done = export("verify", "broken:v1", "--pictures", "0", home=tmp_path)
    assert done.returncode == 1
    assert "Not verified." in done.stderr
    assert "base/vae_decoder compiled for onnx" in done.stderr
    assert "dB from the original" in done.stderr


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("part", ["unet", "vae_decoder"])
def test_whole_pictures_show_a_spoilt_weight(
    compiled_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, part: str
) -> None:
    """One layer of one part is negated; the parts themselves are not looked at."""
    copy, info = broken_copy(compiled_tag, tmp_path, backend)
    layer, component = ("conv_in", "unet") if part == "unet" else ("decoder.conv_in", "vae")
    weights = next((copy / "base" / component).glob("*.safetensors"))
    weight = load_file(weights)[f"{layer}.weight"].astype(np.float32)
    places = 0
    for path in (copy / "compiled" / info.label).glob(f"base_{part}*"):
        content = path.read_bytes()
        places += content.count(weight.tobytes())
        path.write_bytes(content.replace(weight.tobytes(), (-weight).tobytes()))
    assert places
    monkeypatch.setattr(pictures, "_can_check", lambda: False)  # one picture is enough
    manifest = Manifest.load(copy)
    unprobed = [each.model_copy(update={"probes": {}}) for each in manifest.backends]
    manifest.model_copy(update={"backends": tuple(unprobed)}).save(copy)
    with pytest.raises(VerificationError, match=rf"{info.label}: its picture of .* dB from the"):
        verify_pictures(info, Manifest.load(copy), copy, 1)


def test_verify_of_what_was_never_compiled_says_so(embedded_tag: str) -> None:
    done = export("verify", embedded_tag)
    assert done.returncode == 1
    assert "has no compiled backend that fits this machine" in done.stderr


def test_an_interrupted_compilation_leaves_nothing(model_store: Path) -> None:
    def contents() -> set[Path]:
        return {path for path in model_store.rglob("*") if "interrupted" in str(path)}

    process = subprocess.Popen(
        [sys.executable, "-m", "export", "embedded", "--name", "interrupted", "--target", "onnx"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "Choose the dtype of the VAE" in line:  # the next is the compiler's
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not contents()
    assert not list((model_store / "tmp").glob("sdxl-export-*"))


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_server_draws_with_a_compiled_backend(
    compiled_tag: str, tmp_path: Path, backend: str
) -> None:
    settings = {"SDXL_MODEL": compiled_tag, "SDXL_BACKEND": backend}
    with serve(".", tmp_path / "log", env=settings) as server:
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert model["backend"].startswith(f"{backend}-cpu")
        assert model["load_seconds"] > 0
        plain = _picture(server, GENERATE)
        red = (np.abs(plain - [220, 40, 40]).sum(-1) < 120).mean()
        blue = (np.abs(plain - [40, 80, 220]).sum(-1) < 160).mean()
        assert red > 0.03
        assert blue > 0.3
        styled = _picture(server, GENERATE | {"loras": [{"name": "striped"}]})
        assert np.abs(styled - plain).mean() > 2
        refined = _picture(server, GENERATE | {"refiner": True})
        assert 0 < np.abs(refined - plain).mean() < 20


def _picture(server: Server, body: dict[str, object]) -> np.ndarray:
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"), dtype=np.int16)


def test_a_server_that_cannot_use_it_says_why_and_runs_eagerly(
    compiled_tag: str, tmp_path: Path
) -> None:
    settings = {"SDXL_MODEL": compiled_tag, "SDXL_BACKEND": "onnx", "SDXL_DTYPE": "bf16"}
    with serve(".", tmp_path / "log", env=settings) as server:
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert model["backend"] == "eager"
        log = server.output()
    assert "dtype: built for fp32, SDXL_DTYPE is bf16; eager runs instead" in log
