"""The doctor finds what is wrong, says how to mend it, and is never ill itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from export.embedded import WEIGHTS
from sdxl_bento.cli.doctor import configuration, machine, models, packages
from sdxl_bento.cli.doctor.command import examine
from sdxl_bento.cli.doctor.findings import Finding, good
from sdxl_bento.config import Settings
from sdxl_bento.manifest import BackendInfo
from tests.unit.cli.conftest import store_model

ROOT = Path(__file__).resolve().parents[3]
ONNX = BackendInfo(backend="onnx", device="cpu", versions={"onnxruntime": "0.1"})
Run = Callable[..., Any]


def problems(found: list[Finding], status: str = "problem") -> list[Finding]:
    return [each for each in found if each.status == status]


def only(found: list[Finding], status: str) -> Finding:
    (one,) = problems(found, status)
    return one


def test_a_healthy_machine(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model(home, "tiny", backends=[BackendInfo(backend="eager", device="any", versions={})])
    monkeypatch.setenv("SDXL_MODEL", "tiny")
    monkeypatch.setenv("SDXL_DEVICE", "cpu")
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["ok"]) == (0, True), done.stdout
    about = {each["about"] for each in report["findings"]}
    assert {"Python", "packages", "torch", "CPU", "settings", "model store", "tiny:one"} <= about
    shown = run("doctor")
    assert shown.exit_code == 0
    assert "✔ tiny:one: 128x128, fp16, with refiner, 1 LoRA, 12 B" in shown.stdout
    assert "Ready to serve" in shown.stdout


def test_no_model(run: Run) -> None:
    done = run("doctor")
    assert done.exit_code == 1
    assert "✘ model: no model named 'sdxl-embedded:latest'" in done.stdout
    assert "→ python -m export embedded" in done.stdout
    assert "Serving will fail: 1 problem" in done.stdout


def test_broken_models(home: Path) -> None:
    for name in ("tiny", "garbled"):
        (store_model(home, name) / "manifest.json").write_text('{"schema_version": 7}')
    found = list(models.served(Settings(model="tiny")))
    assert "not a manifest of schema 1" in only(found, "problem").message
    assert "export the model again" in only(found, "problem").mend
    other = only(list(models.others(Settings(model="tiny"))), "warning")
    assert other.about == "garbled:one"
    assert f"rm -r {home}/models/garbled/one" in other.mend


def test_half_a_model(home: Path) -> None:
    folder = store_model(home, "tiny")
    (folder / "model.yaml").unlink()
    (home / "models" / "tiny" / "latest").write_text("two")
    found = problems(list(models.store(Settings())), "warning")
    assert [each.mend for each in found] == [
        f"rm -r {folder}",
        "export the model again, or name a version in SDXL_MODEL (tiny:one)",
    ]


def test_a_model_with_files_cut_short(home: Path) -> None:
    folder = store_model(home, "tiny")
    (folder / "base" / "unet" / "weights").write_bytes(b"x")
    (folder / "loras" / "striped.safetensors").unlink()
    shutil.rmtree(folder / "refiner" / "unet")
    wrong = only(list(models.served(Settings(model="tiny"))), "problem")
    assert "base/unet has 1 bytes, not 7" in wrong.message
    assert "refiner/unet is missing" in wrong.message
    assert "loras/striped.safetensors is missing" in wrong.message
    assert "--name tiny --force" in wrong.mend


def test_backends_that_do_not_fit(home: Path) -> None:
    gpu = BackendInfo(backend="tensorrt", device="cuda:9.0", versions={})
    store_model(home, "tiny", backends=[ONNX, gpu])
    settings = Settings(model="tiny", device="cpu")
    found = list(models.backends(settings))
    assert [each.message.partition(",")[0] for each in problems(found, "warning")] == [
        "onnx-cpu does not fit: onnxruntime: built with 0.1",
        "tensorrt-cuda90 does not fit: device: built for cuda:9.0",
    ]
    assert not problems(found)
    strict = settings.model_copy(update={"allow_fallback": False})
    assert "SDXL_ALLOW_FALLBACK is off" in only(list(models.backends(strict)), "problem").message
    absent = settings.model_copy(update={"backend": "openvino"})
    wrong = only(list(models.backends(absent)), "problem")
    assert "the model has: eager, onnx-cpu, tensorrt-cuda90" in wrong.message
    cuda = settings.model_copy(update={"device": "cuda"})
    assert "needs a CUDA device" in only(list(models.backends(cuda)), "problem").message


def test_a_backend_that_fits(home: Path) -> None:
    here = BackendInfo(
        backend="onnx", device="cpu", dtype="fp32", versions={"onnxruntime": version("onnxruntime")}
    )
    store_model(home, "tiny", backends=[ONNX, here])
    found = list(models.backends(Settings(model="tiny", device="cpu")))
    assert [each.status for each in found] == ["warning", "good", "note"]
    assert found[1].message == "onnx-cpu-fp32 fits, and is used"


def test_how_much_memory_a_model_may_hold(home: Path) -> None:
    openvino = BackendInfo(
        backend="openvino", device="cpu", dtype="bf16",
        versions={"openvino": version("openvino")}, artifacts={"base/unet": "a"},
    )  # fmt: skip
    store_model(home, "tiny", backends=[openvino])
    few, many = (
        Settings(model="tiny", device="cpu", openvino_kernels=kernels) for kernels in (0, 4096)
    )
    [text] = [e.message for e in models.backends(few) if "between requests" in e.message]
    assert text == "its server may hold 801 MB of memory between requests"
    [text] = [e.message for e in models.backends(many) if "between requests" in e.message]
    assert text == "its server may hold 2.95 GB of memory between requests"


def test_settings(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("SDXL_WORKERS", "0")
    monkeypatch.setenv("SDXL_MAX_QEUE", "9")
    monkeypatch.setenv("SDXL_SOMETHING", "9")
    settings, found = configuration.settings_or_defaults()
    assert settings.workers == 1
    assert "SDXL_WORKERS is '0'" in only(found, "problem").message
    misspelt = list(configuration.misspelt())
    assert [each.about for each in misspelt] == ["settings", "settings"]
    assert misspelt[0].mend == "did you mean SDXL_MAX_QUEUE?"
    assert "settings.md" in misspelt[1].mend
    done = run("doctor", "--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["findings"]) > 10  # the others were run all the same


def test_lora_folder(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    assert (
        "no folder" in only(list(configuration.loras(Settings(lora_dir=folder))), "warning").message
    )
    folder.mkdir()
    whole = (WEIGHTS / "loras" / "striped.safetensors").read_bytes()
    (folder / "whole.safetensors").write_bytes(whole)
    (folder / "short.safetensors").write_bytes(whole[:-100])
    (folder / "other.safetensors").write_bytes(b"PK not at all")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (folder / "pickle.ckpt").write_bytes(b"")
    found = list(configuration.loras(Settings(lora_dir=folder)))
    broken = {Path(each.message.partition(": ")[0]).stem for each in problems(found, "warning")}
    assert broken == {"short", "other", "empty", "list"}
    assert any("cut short" in each.message for each in found)
    assert "pickle.ckpt" in only(found, "note").message
    assert only(found, "good").message == f"1 in {folder}"


def test_image_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there,) = configuration.image_store(Settings(store=str(tmp_path / "not" / "yet")))
    assert there.status == "good"
    tight = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: tight)
    (full,) = configuration.image_store(Settings(store=str(tmp_path)))
    assert (full.status, "1 kB free" in full.message) == ("warning", True)


def test_an_object_store_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().model_copy(update={"store": "s3://bucket/pictures"})
    (there,) = configuration.image_store(settings)
    assert there.status == "good"
    monkeypatch.setattr(configuration, "find_spec", lambda _: None)
    (missing,) = configuration.image_store(settings)
    assert (missing.status, missing.mend) == ("problem", "pip install 'sdxl-bento[s3]'")


def test_packages_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packages._version
    versions = {"torch": "2.1", "diffusers": None}
    monkeypatch.setattr(packages, "_version", lambda name: versions.get(name, installed(name)))
    found = list(packages.packages())
    assert [each.message for each in problems(found)] == [
        "diffusers: not installed",
        "torch: 2.1, needed: >=2.11",
    ]
    assert problems(found)[1].mend == "pip install 'torch>=2.11'"


def test_both_builds_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_version", lambda _: "1.31.1")
    (both,) = packages.onnx_builds()
    assert "overwrite each other's files" in both.message
    assert "pip uninstall onnxruntime onnxruntime-gpu" in both.mend


def test_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = list(machine.device(Settings(device="cuda")))
    assert "torch finds no CUDA device" in only(found, "problem").message
    monkeypatch.setattr(machine, "DRIVER", tmp_path)  # it is there
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs" in only(list(machine.device(Settings())), "warning").message


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        (90, ["sm_80", "sm_90a"], True),
        (89, ["sm_80", "sm_90"], True),
        (120, ["sm_80", "sm_90"], False),
        (120, ["sm_80", "compute_90"], True),
        (70, ["sm_80", "compute_80"], False),
        (90, [], True),
    ],
)
def test_which_gpus_a_build_runs_on(capability: int, built: list[str], runs: bool) -> None:
    assert machine._runs_on(capability, built) is runs


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(machine.cpu(Settings(threads=4096)))
    assert "more than there are cores" in only(found, "warning").message


def test_memory_is_compared_with_the_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model(home, "tiny")
    monkeypatch.setattr(models, "available_memory", lambda: 10)
    monkeypatch.setattr(models, "gpu_memory", lambda: 3)
    cpu, gpu = problems(list(models.served(Settings(model="tiny"))), "warning")
    assert cpu.message == "its weights are 14 B, and 10 B of memory are free"
    assert gpu.message == "its weights are 14 B, and 3 B of the GPU's memory are free"
    assert "SDXL_DEVICE=enable_model_cpu_offload" in gpu.mend
    only(list(models.served(Settings(model="tiny", device="cpu"))), "warning")
    tight = shutil.disk_usage(home)._replace(free=11)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: tight)
    assert (
        "11 B free, and its largest model has 12 B"
        in only(list(models.store(Settings())), "warning").message
    )


def test_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(machine, "PORT", taken.getsockname()[1])
        (found,) = machine.port(Settings())
        assert found.status == "note"
    (found,) = machine.port(Settings())
    assert found.status == "good"


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def odd(_: Settings) -> Iterator[Finding]:
        yield good("port", "found")
        raise RuntimeError("no such luck")

    monkeypatch.setattr(machine, "port", odd)
    first, second = list(examine(None))[-2:]
    assert first == good("port", "found")
    assert (second.status, second.about) == ("warning", "port")
    assert second.message == "this check itself failed: RuntimeError: no such luck"


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("torch", "✘ torch: cannot be imported"),
        ("packaging", "! python: not looked at"),
        ("pydantic_settings", "✘ settings: they cannot be read"),
    ],
)
def test_without_a_package(missing: str, told: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from sdxl_bento.cli import main\n"
        "sys.argv[1:] = ['doctor']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert told in done.stdout
    assert "Serving will fail" in done.stdout


def test_a_server_that_is_gone(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found = [each for each in examine(url) if each.about == "server"]
    assert "no server answers" in only(found, "problem").message
    assert "bentoml serve" in only(found, "problem").mend
