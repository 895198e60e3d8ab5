"""The targets of a command line, before anything is compiled."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from export.check.parity import LEAST_PSNR_QUANTIZED_DB
from export.compile import requests
from export.compile.registry import Machine, Target, register
from export.compile.requests import TargetRequest, has_graphs_for, parse_targets
from export.compile.targets import all_targets
from export.errors import ExportError
from sdxl_bento.backends.choose import runtime
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.manifest import BackendInfo, BackendName

ROOT = Path(__file__).resolve().parents[3]


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


def test_every_backend_that_is_compiled_has_a_target() -> None:
    assert list(all_targets()) == [name for name in get_args(BackendName) if name != "eager"]
    for name, target in all_targets().items():
        assert target.name == name


def test_every_target_has_a_runtime() -> None:
    for name in all_targets():
        assert callable(runtime(name).load)


def test_listing_the_targets_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom export.compile.targets import all_targets\nall_targets()\n"
        "heavy = {'torch', 'diffusers', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("target", all_targets().values(), ids=lambda target: target.name)
def test_a_target_goes_to_the_processes_that_compile(target: Target) -> None:
    assert pickle.loads(pickle.dumps(target)) == target


def test_two_targets_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two targets are named 'onnx'"):
        register(all_targets()["onnx"])


@pytest.mark.parametrize("target", all_targets().values(), ids=lambda target: target.name)
def test_every_target_is_described(target: Target) -> None:
    """In a section of its own on the page of targets, with all that it offers."""
    page = (ROOT / "docs" / "guides" / "targets.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    assert target.name in sections
    for kind in target.quantizations:
        assert f"`{kind}`" in sections[target.name], kind
    guide = (ROOT / "docs" / "guides" / "export.md").read_text()
    row = next(line for line in guide.splitlines() if line.startswith("| `--target` |"))
    assert f"`{target.name}`" in row
    kinds = next(line for line in guide.splitlines() if line.startswith("| `--quantize` |"))
    assert all(f"`{kind}`" in kinds for kind in target.quantizations)


@pytest.mark.parametrize("target", all_targets().values(), ids=lambda target: target.name)
def test_every_kind_of_quantization_has_its_thresholds(target: Target) -> None:
    assert set(target.quantizations) <= set(LEAST_PSNR_QUANTIZED_DB)
    assert target.made_from is None or set(target.convertible) <= {None, *target.quantizations}


@pytest.mark.parametrize(
    ("machine", "order"),
    [
        (Machine(cuda=True, bf16=True), ["inductor"]),
        (Machine(cuda=False, bf16=True), ["openvino", "onnx"]),
        (Machine(cuda=False, bf16=False), ["onnx", "openvino"]),
    ],
)
def test_the_order_in_which_auto_prefers_targets(machine: Machine, order: list[str]) -> None:
    liked = [target for target in all_targets().values() if target.preference(machine)]
    assert [t.name for t in sorted(liked, key=lambda t: -t.preference(machine))] == order


def test_graphs_are_converted_where_they_are_those_that_would_be_traced() -> None:
    openvino = TargetRequest(all_targets()["openvino"], dtype="fp32")
    graphs = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="fp32", vae_dtype="fp32")
    assert has_graphs_for(graphs, openvino)
    for changes in (
        {"backend": "tensorrt"}, {"device": "cuda:9.0"}, {"dtype": "bf16"}, {"vae_dtype": "bf16"},
        {"quantization": "int8"}, {"exporter": "optimum"},
    ):  # fmt: skip
        assert not has_graphs_for(graphs.model_copy(update=changes), openvino), changes
    for kind, graph_kind in (("int8", "int8-weights"), ("int8-weights", "int8-weights")):
        wanted = replace(openvino, quantization=kind)
        assert has_graphs_for(graphs.model_copy(update={"quantization": graph_kind}), wanted)
        assert not has_graphs_for(graphs, wanted)
    static = replace(openvino, quantization="int8-static")
    assert not has_graphs_for(graphs.model_copy(update={"quantization": "int8-static"}), static)
    assert not has_graphs_for(graphs, TargetRequest(all_targets()["onnx"]))
