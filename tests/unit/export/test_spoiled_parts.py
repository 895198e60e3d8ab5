"""One weight of one compiled part is spoilt on disk, for each backend that runs on a CPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from export.check.parity import cases_of, verify_parts
from export.compile.calibration import watch_layers
from export.compile.compiler import compile_target
from export.compile.onnx_graph.quantize import quantize
from export.compile.onnx_graph.slots import add_slots
from export.compile.onnx_graph.static import Ranges
from export.compile.requests import TargetRequest
from export.compile.targets import all_targets, openvino
from export.errors import VerificationError
from export.model.components import load_component, load_shapes
from export.model.graphs import UNetRows
from export.model.parts import component_of, is_decoder, parts_of, role_of
from export.progress import Progress
from sdxl_bento.backends.shared_weights import SharedWeights
from sdxl_bento.backends.slots import SlotLayout
from sdxl_bento.manifest import BackendInfo, BackendName, ParityFigure, Quantization, Role, Size
from tests.support.small_model import SmallModel, write_small_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx's own, of its parts
CPU = torch.device("cpu")
KINDS: tuple[Quantization | None, ...] = (None, "int8-weights", "int8", "int8-static")
PARTS = (*parts_of("base"), *parts_of("refiner"))
CASES = [
    (backend, kind, part)
    for backend in ("onnx", "openvino")
    for kind in KINDS
    for part in PARTS
    # Quantizing changes the layers behind the weight in the same way in every UNet.
    if kind is None or part == "base/unet_slots"
]


@dataclass
class Compiled:
    """The model with the graphs of every backend, each written when it is first asked for."""

    model: SmallModel
    infos: dict[tuple[BackendName, Quantization | None], BackendInfo]

    def info(self, backend: BackendName, kind: Quantization | None) -> BackendInfo:
        key = backend, kind
        if key not in self.infos:
            write = _write_onnx if backend == "onnx" else _write_openvino
            self.infos[key] = write(self, kind)
        return self.infos[key]

    def folder(self, info: BackendInfo) -> Path:
        return self.model.folder / "compiled" / info.label

    def verify(self, info: BackendInfo, part: str) -> ParityFigure:
        """In one shape, for each new one costs a runtime some seconds."""
        pipeline = self.model.pipelines[role_of(part)]
        one = Size(width=pipeline.width, height=pipeline.height)
        only = info.model_copy(
            update={"artifacts": {part: info.artifacts[part]}, "sizes": (one,), "rows": (2,)}
        )
        (figure,) = verify_parts(only, self.model.folder, self.model.pipelines, CPU)
        return figure


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiled for `onnx` by the exporter itself."""
    model = write_small_model(tmp_path_factory.mktemp("small"))
    return Compiled(model, {("onnx", None): compile_small(model, "onnx")})


def compile_small(model: SmallModel, name: BackendName) -> BackendInfo:
    target = replace(all_targets()[name], in_parallel=False)
    request = TargetRequest(target, dtype="fp32", threads=1)
    quiet = Progress(Console(quiet=True))
    info = compile_target(request, model.folder, model.pipelines, None, quiet)
    assert set(info.artifacts) == set(PARTS)
    return info


def _sibling(info: BackendInfo, **changes: Any) -> BackendInfo:
    """The same backend with other fields, its artifacts in a folder of its own."""
    other = info.model_copy(update=changes)
    suffix = ".xml" if other.backend == "openvino" else ".onnx"
    artifacts = {
        part: f"compiled/{other.label}/{Path(path).stem}{suffix}"
        for part, path in info.artifacts.items()
    }
    return other.model_copy(update={"artifacts": artifacts})


def _write_onnx(compiled: Compiled, kind: Quantization | None, **options: Any) -> BackendInfo:
    plain = compiled.info("onnx", None)
    # Graphs for OpenVINO are not those of target onnx, and need a folder of their own.
    info = _sibling(plain, quantization=kind, device="cpu:0" if options else "cpu")
    shutil.copytree(compiled.folder(plain), compiled.folder(info))
    for role in ("base", "refiner"):
        path = compiled.model.folder / info.artifacts[f"{role}/unet"]
        assert kind is not None
        quantize(path, kind, ranges(compiled, role), **options)
    _add_slots(compiled, info)
    return info


def _add_slots(
    compiled: Compiled, info: BackendInfo, change: Callable[[SlotLayout], None] = lambda _: None
) -> None:
    folder = compiled.model.folder
    layout = SlotLayout(load_shapes(folder / "base" / "unet"))
    change(layout)
    plain = folder / info.artifacts["base/unet"]
    add_slots(plain, folder / info.artifacts["base/unet_slots"], layout)


def _write_openvino(compiled: Compiled, kind: Quantization | None) -> BackendInfo:
    if kind == "int8-static":
        graphs = _write_onnx(compiled, kind, outputs=False)
    else:
        graphs = compiled.info("onnx", openvino.GRAPH_QUANTIZATIONS[kind])
    info = _sibling(graphs, backend="openvino", quantization=kind, device="cpu")
    _convert(compiled, graphs, info)
    return info


def _convert(compiled: Compiled, graphs: BackendInfo, info: BackendInfo) -> None:
    compiled.folder(info).mkdir(parents=True)
    for part in PARTS:  # a UNet before its variant with slots
        source, path = (compiled.model.folder / each.artifacts[part] for each in (graphs, info))
        openvino.convert(source, path, path.parent)


def ranges(compiled: Compiled, role: Role) -> Ranges:
    """Of a UNet's layers, over the inputs of the verification."""
    folder = compiled.model.folder / role / "unet"
    unet = load_component(folder, torch.float32, CPU)
    found = watch_layers(unet)
    info, pipeline = compiled.info("onnx", None), compiled.model.pipelines[role]
    with torch.no_grad():
        for case in cases_of(f"{role}/unet", info, pipeline):
            UNetRows(unet)(**case.inputs(unet, CPU))
    return found


def weight_of(compiled: Compiled, part: str) -> np.ndarray:
    """The first convolution of a part, whose weights no kind quantizes."""
    folder = compiled.model.folder / role_of(part) / component_of(part)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    prefix = "decoder." if is_decoder(part) else ""
    return np.asarray(tensors[f"{prefix}conv_in.weight"], np.float32)


def spoil(folder: Path, weight: np.ndarray) -> None:
    """Negate a weight in the files of `folder`, wherever its bytes are.

    The files are replaced and not written to: a runtime may still have them mapped.
    """
    before, after = weight.tobytes(), (-weight).tobytes()
    places = 0
    for path in [path for path in folder.iterdir() if path.is_file()]:
        content = path.read_bytes()
        if not content.count(before):
            continue
        places += content.count(before)
        new = path.with_name("new")
        new.write_bytes(content.replace(before, after))
        new.replace(path)
    assert places, "the weight is not in these files"


@pytest.fixture
def spoilt(compiled: Compiled, request: pytest.FixtureRequest) -> Any:
    """Restores the artifacts of a backend that a test is to spoil."""
    backend, kind, part = request.param
    info = compiled.info(backend, kind)
    folder = compiled.folder(info)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield info, part
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.mark.parametrize(
    "spoilt", CASES, indirect=True, ids=lambda case: "-".join(filter(None, case))
)
def test_a_spoilt_weight_is_refused(compiled: Compiled, spoilt: tuple[BackendInfo, str]) -> None:
    info, part = spoilt
    assert compiled.verify(info, part).part == part
    spoil(compiled.folder(info), weight_of(compiled, part))
    with pytest.raises(VerificationError, match=f"{part} compiled for {info.label}: .* dB from"):
        compiled.verify(info, part)


def swap_two_layers(layout: SlotLayout) -> None:
    """Give two layers of equal widths each other's adapters."""
    widths: dict[tuple[int, int], str] = {}
    for layer, columns in layout.columns.items():
        width = columns.down.stop - columns.down.start, columns.up.stop - columns.up.start
        other = widths.setdefault(width, layer)
        if other != layer:
            swapped = {layer: other, other: layer}
            layout.columns = {swapped.get(name, name): c for name, c in layout.columns.items()}
            return
    raise AssertionError("no two layers of equal widths")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_adapters_of_another_layer_are_refused(compiled: Compiled, backend: BackendName) -> None:
    plain = compiled.info("onnx", None)
    wrong = _sibling(plain, device="cpu:wrong")
    shutil.copytree(compiled.folder(plain), compiled.folder(wrong), dirs_exist_ok=True)
    _add_slots(compiled, wrong, swap_two_layers)
    if backend == "openvino":
        graphs, wrong = wrong, _sibling(wrong, backend="openvino")
        _convert(compiled, graphs, wrong)
    assert compiled.verify(wrong, "base/unet").part == "base/unet"
    with pytest.raises(VerificationError, match="base/unet_slots compiled for"):
        compiled.verify(wrong, "base/unet_slots")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("SDXL_TEST_INDUCTOR"),
    reason="inductor: its compiler takes minutes; SDXL_TEST_INDUCTOR=1 waits for it",
)
def test_a_spoilt_weight_is_refused_on_inductor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packages hold no weights; what a part is given in their place is spoilt."""
    model = write_small_model(tmp_path)
    compiled = Compiled(model, {})
    info = compile_small(model, "inductor")
    for part in PARTS:
        assert compiled.verify(info, part).part == part
    real = SharedWeights._one

    def one(self: SharedWeights, recipe: Any, files: Any) -> torch.Tensor:
        tensor = real(self, recipe, files)
        return -tensor if recipe.keys[0].endswith("conv_in.weight") else tensor

    monkeypatch.setattr(SharedWeights, "_one", one)
    for part in PARTS:
        with pytest.raises(VerificationError, match=f"{part} compiled for {info.label}"):
            compiled.verify(info, part)
