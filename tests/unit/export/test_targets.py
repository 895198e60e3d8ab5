"""The targets of a command line, before anything is compiled."""

from __future__ import annotations

import pytest
import torch

from export.compile import requests
from export.compile.registry import Target
from export.compile.requests import TargetRequest, parse_targets
from export.compile.targets import all_targets
from export.errors import ExportError
from sdxl_bento.backends.parts import MOST_ROWS


def names(text: str) -> list[str]:
    return [request.target.name for request in parse_targets(text)]


def test_names_with_commas() -> None:
    assert names("onnx, openvino") == ["onnx", "openvino"]
    assert names("openvino,openvino") == ["openvino"]
    assert names("") == names("eager") == []


def test_auto_is_what_suits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert names("auto") == ["inductor"]


def test_auto_without_any_runtime_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Target, "installed", False)
    assert names("auto") == []


def test_options_go_to_every_target() -> None:
    for request in parse_targets(
        "onnx,openvino", dtype="fp32", quantization="int8", sizes="128x96, 64X64", rows="4,1,4"
    ):
        assert (request.dtype, request.quantization) == ("fp32", "int8")
        assert request.sizes == ((128, 96), (64, 64))
        assert request.rows == (1, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "onxx"}, "--target 'onxx': there are eager, inductor, onnx, tensorrt, openvino"),
        ({"text": "onnx", "sizes": "1024"}, "--sizes '1024': width x height"),
        ({"text": "onnx", "sizes": "1024x-2"}, "--sizes '1024x-2'"),
        ({"text": "onnx", "rows": "0"}, f"--rows '0': whole numbers from 1 to {MOST_ROWS}"),
        ({"text": "onnx", "rows": "64"}, "--rows '64'"),
        ({"text": "onnx", "rows": "two"}, "--rows 'two'"),
        (
            {"text": "inductor", "quantization": "int8-static"},
            "--quantize int8-static: for inductor there is int8-weights and int8 and fp8",
        ),
        ({"text": "tensorrt", "quantization": "int8"}, "int8: for tensorrt there is none"),
        (
            {"text": "onnx,openvino", "exporter": "optimum"},
            "--exporter optimum: writes for the target onnx, not openvino",
        ),
    ],
)
def test_what_there_is_not_is_refused_by_its_name(given: dict[str, str], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        parse_targets(**given)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_target_for_a_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(ExportError, match="--target tensorrt"):
        TargetRequest(all_targets()["tensorrt"]).info()


def test_what_is_known_of_a_backend_before_it_is_compiled() -> None:
    pytest.importorskip("onnxruntime")
    info = TargetRequest(all_targets()["onnx"], rows=(1, 2), sizes=((128, 96),)).info()
    assert (info.backend, info.adapters, info.rows) == ("onnx", "slots", (1, 2))
    assert (info.sizes[0].width, info.sizes[0].height) == (128, 96)
    assert info.versions
    if not torch.cuda.is_available():
        assert info.label == "onnx-cpu-fp32"


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def versions(self) -> dict[str, str]:
            raise ImportError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr(requests, "runtime", lambda _: Absent())
    with pytest.raises(ExportError, match="--target openvino: the package openvino is not install"):
        TargetRequest(all_targets()["openvino"]).info()
