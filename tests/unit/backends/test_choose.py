"""Which backend runs: what fits, what does not and why, and what becomes of it then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_bento.backends import choose
from sdxl_bento.backends.choose import Misfit, candidates, device_name, misfit
from sdxl_bento.config import DeviceMode, Settings
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving import compiled_parts, loading
from sdxl_bento.serving.verification import Verification

HERE = {"openvino": "2026.4.1", "onnxruntime": "1.31.1"}
BUILT = BackendInfo(
    backend="openvino",
    device="cpu",
    dtype="bf16",
    adapters="slots",
    versions={"openvino": "2026.4.1"},
    artifacts={"base/unet": "compiled/openvino-cpu-bf16/unet.xml"},
)


class Runtime:
    """A runtime of which everything is known but how it runs."""

    def __init__(self, missing: str = "") -> None:
        self.missing = missing
        self.loaded: list[Path] = []
        self.unloaded = 0
        self.broken: str = ""

    def versions(self) -> dict[str, str]:
        if self.missing:
            raise ImportError(f"No module named {self.missing!r}", name=self.missing)
        return HERE

    def load(self, path: Path, options: Any) -> Runtime:
        if self.broken in path.name and self.broken:
            raise ConfigurationError(f"{path.name} is cut short")
        self.loaded.append(path)
        return self

    def unload(self) -> None:
        self.unloaded += 1


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.setattr(choose, "runtime", lambda _: runtime)
    monkeypatch.setattr(compiled_parts, "runtime", lambda _: runtime)
    return runtime


def placement(mode: DeviceMode = "cpu") -> Placement:
    return Placement(torch.device("cpu"), torch.float32, mode)


def loaded(folder: Path, settings: Settings) -> tuple[BackendInfo | None, dict[str, Any]]:
    """The backend that the service takes, with its parts; files are not compared."""
    manifest = Manifest.load(folder)
    check = Verification("off").of(folder, manifest)
    chosen = compiled_parts.load_parts(folder, manifest, settings, placement(), check)
    compiled_parts.log_misfits(manifest.name, chosen)
    return chosen.info, dict(chosen.parts)


def changed(**changes: object) -> BackendInfo:
    return BUILT.model_copy(update=changes)


def test_what_was_built_for_this_machine_fits(runtime: Runtime) -> None:
    assert misfit(BUILT, placement(), "auto") == ""
    assert misfit(BUILT, placement(), "bf16") == ""
    assert misfit(changed(device="any"), placement(), "auto") == ""


@pytest.mark.parametrize(
    ("info", "mode", "dtype", "said"),
    [
        (changed(device="cuda:9.0"), "cpu", "auto", "device: built for cuda:9.0, here is cpu"),
        (BUILT, "cpu", "fp32", "dtype: built for bf16, SDXL_DTYPE is fp32"),
        (
            changed(versions={"openvino": "2025.1.0"}), "cpu", "auto",
            "openvino: built with 2025.1.0, here is 2026.4.1",
        ),
        (changed(versions={"isa": "amx"}), "cpu", "auto", "isa: built with amx, here is none"),
        (BUILT, "enable_model_cpu_offload", "auto", "SDXL_DEVICE is enable_model_cpu_offload"),
    ],
)  # fmt: skip
def test_the_field_that_differs_is_named(
    runtime: Runtime, info: BackendInfo, mode: DeviceMode, dtype: str, said: str
) -> None:
    assert said in misfit(info, placement(mode), dtype)


def test_a_missing_package_is_named(runtime: Runtime) -> None:
    runtime.missing = "openvino"
    assert misfit(BUILT, placement(), "auto") == "package: openvino is not installed"


def test_a_device_is_named_with_its_architecture() -> None:
    assert device_name(torch.device("cpu")) == "cpu"


def manifest_of(folder: Path, *infos: BackendInfo) -> Manifest:
    manifest = Manifest.load(folder)
    return manifest.model_copy(update={"backends": (*manifest.backends[:1], *infos)})


@pytest.fixture
def folder(embedded_tag: str, tmp_path: Path) -> Path:
    """A manifest of a model with two compiled backends, the first built elsewhere."""
    elsewhere = changed(backend="inductor", device="cuda:9.0", dtype="fp16", versions={})
    manifest_of(loading.folder_of(embedded_tag), elsewhere, BUILT).save(tmp_path)
    return tmp_path


def test_candidates_come_in_the_manifests_order(runtime: Runtime, folder: Path) -> None:
    found = list(candidates(Manifest.load(folder), "auto", placement(), "auto"))
    assert isinstance(found[0], Misfit)
    assert found[0].label == "inductor-cuda90-fp16"
    assert found[1] == BUILT


@pytest.mark.parametrize("wanted", ["openvino", "openvino-cpu-bf16"])
def test_one_can_be_asked_for_by_name_or_label(runtime: Runtime, folder: Path, wanted: str) -> None:
    assert list(candidates(Manifest.load(folder), wanted, placement(), "auto")) == [BUILT]


def test_a_backend_that_the_model_has_not_is_refused_with_those_it_has(folder: Path) -> None:
    said = "SDXL_BACKEND is 'onnx'.*eager, inductor-cuda90-fp16, openvino-cpu-bf16.*--target"
    with pytest.raises(ConfigurationError, match=said):
        list(candidates(Manifest.load(folder), "onnx", placement(), "auto"))


def test_the_service_takes_the_one_that_fits_and_says_why_not_the_other(
    runtime: Runtime, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info, parts = loaded(folder, Settings())
    assert info == BUILT
    assert list(parts) == ["base/unet"]
    assert runtime.loaded == [folder / BUILT.artifacts["base/unet"]]
    assert "inductor-cuda90-fp16 is not used: device: built for cuda:9.0" in caplog.text
    assert "openvino-cpu-bf16 runs instead" in caplog.text


def test_eager_is_what_is_left(
    runtime: Runtime, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.missing = "openvino"
    assert loaded(folder, Settings()) == (None, {})
    assert "openvino is not installed; eager runs instead" in caplog.text


def test_without_fallback_the_start_is_refused_with_every_reason(
    runtime: Runtime, folder: Path
) -> None:
    runtime.missing = "openvino"
    with pytest.raises(ConfigurationError, match=r"cuda:9\.0.*openvino is not installed"):
        loaded(folder, Settings(allow_fallback=False))


def test_eager_by_wish_asks_no_runtime(folder: Path) -> None:
    assert loaded(folder, Settings(backend="eager")) == (None, {})


def test_a_part_that_cannot_be_loaded_lets_go_of_the_others(
    runtime: Runtime, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = {"base/unet": "compiled/unet.xml", "base/vae_decoder": "compiled/vae.xml"}
    manifest_of(folder, changed(artifacts=two)).save(folder)
    runtime.broken = "vae"
    assert loaded(folder, Settings()) == (None, {})
    assert (len(runtime.loaded), runtime.unloaded) == (1, 1)
    assert "vae.xml is cut short" in caplog.text
