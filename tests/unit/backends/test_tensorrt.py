"""What TensorRT's provider is told; without the provider, who says so."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import onnxruntime
import pytest
import torch

from export.compile.options import CompileOptions
from export.compile.targets import tensorrt as to_tensorrt
from export.errors import ExportError
from sdxl_bento.backends import tensorrt
from sdxl_bento.backends.onnx import available_providers
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.backends.tensorrt import Profile, fits, load, read_profile, tensorrt_provider
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo
from tests.support.small_unet import CPU, compile_options, small_graph

CUDA = torch.device("cuda", 1)
INFO = BackendInfo(backend="tensorrt", device="cuda:9.0", versions={}, dtype="fp16")


@pytest.fixture
def options(tmp_path: Path) -> CompileOptions:
    made = compile_options(tmp_path, sizes=((64, 32), (128, 128)), rows=(1, 4))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8] * 4}))
    return made


def written(profile: Profile, folder: Path) -> Path:
    path = folder / "base_unet.json"
    path.write_text(json.dumps({"graph": "base_unet.onnx", "profile": profile}))
    return path


def test_one_profile_for_all_sizes_and_rows(options: CompileOptions) -> None:
    """ONNX Runtime runs the first of several and no other."""
    found = to_tensorrt.profile(small_graph(), options)
    assert found["sample"] == ((1, 4, 4, 8), (4, 4, 4, 8), (4, 4, 16, 16))
    assert found["timestep"] == ((1,), (4,), (4,))
    assert set(found) == set(small_graph().inputs)


def test_slots_vary_within_the_profile(options: CompileOptions) -> None:
    graph = small_graph(slots=True)
    profile = to_tensorrt.profile(graph, options)
    shapes = {name: usual for name, (_, usual, _) in profile.items()}
    assert fits(profile, shapes)
    width = graph.inputs["down"].shape[2]
    assert fits(profile, shapes | {"down": (5, 64, width)})
    assert not fits(profile, shapes | {"down": (5, 65, width)})
    assert fits(profile, shapes | {"sample": (3, 4, 8, 8)})
    assert not fits(profile, shapes | {"sample": (5, 4, 8, 8)})
    assert not fits(profile, shapes | {"sample": (3, 4, 8, 32)})


def test_options_are_those_of_the_provider(options: CompileOptions, tmp_path: Path) -> None:
    path = written(to_tensorrt.profile(small_graph(), options), tmp_path)
    graph, profile = read_profile(path)
    name, chosen = tensorrt_provider(graph, profile, PartOptions(INFO, CUDA, tmp_path), 77)
    assert name == "TensorrtExecutionProvider"
    assert chosen["device_id"] == "1" and chosen["user_compute_stream"] == "77"
    assert (chosen["trt_fp16_enable"], chosen["trt_bf16_enable"]) == ("1", "0")
    assert chosen["trt_engine_cache_enable"] == chosen["trt_timing_cache_enable"] == "1"
    assert chosen["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert chosen["trt_load_user_initializer"] == "1"
    # The format of the documentation: input:1x4x8,…
    shapes = chosen["trt_profile_min_shapes"]
    assert shapes.startswith("sample:1x4x4x8,timestep:1,encoder_hidden_states:1x77x12,")
    assert chosen["trt_profile_opt_shapes"].startswith("sample:4x4x4x8,timestep:4,")
    assert chosen["trt_profile_max_shapes"].startswith("sample:4x4x16x16,timestep:4,")


def test_sizes_and_rows_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--sizes"):
        to_tensorrt.compile_part(small_graph(), None, tmp_path, compile_options(tmp_path))


def test_a_quantization_is_refused(options: CompileOptions, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8"):
        to_tensorrt.compile_part(
            small_graph(), None, tmp_path, replace(options, quantization="int8")
        )


def test_a_wrong_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "base_unet.json"
    for text in ("", "[]", '{"graph": "x", "profile": {"sample": [1]}}'):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"base_unet\.json"):
            read_profile(path)


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in available_providers(), reason="the provider is there"
)
def test_without_the_provider_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no TensorrtExecutionProvider.*onnxruntime-gpu"):
        load(written({}, tmp_path), PartOptions(INFO, CPU, tmp_path))


def test_an_engine_is_bound_to_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's has the CUDA version in its name, or has not."""
    here = {"tensorrt-cu13": "10.14.1"}

    def version(package: str) -> str:
        if package not in here:
            raise PackageNotFoundError(package)
        return here[package]

    monkeypatch.setattr(tensorrt, "version", version)
    runtime = onnxruntime.__version__
    assert tensorrt.versions() == {"onnxruntime": runtime, "tensorrt": "10.14.1"}
    here.clear()
    assert tensorrt.versions() == {"onnxruntime": runtime}
