"""A small graph compiled ahead of time for real, and loaded with weights from safetensors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.export import Dim

from export.compile.options import CompileOptions
from export.compile.targets.inductor import compile_part
from export.errors import ExportError
from export.model.graphs import Graph
from sdxl_bento.backends.inductor import load, versions
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.errors import ArtifactMismatch, ConfigurationError
from sdxl_bento.manifest import BackendInfo

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
CPU = torch.device("cpu")
INFO = BackendInfo(backend="inductor", device="cpu", versions={})


class Wrapper(nn.Module):
    """As the graphs of `export/model/graphs.py`: the network is one level down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 3, padding=1)
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.unet(sample) * timestep[:, None, None, None].to(sample.dtype)
        return scaled


@dataclass
class Compiled:
    graph: Graph
    weights: Path
    path: Path


@pytest.fixture(scope="module")
def graph() -> Graph:
    rows, height = Dim("rows", min=1, max=63), Dim("height", min=2, max=64)
    return Graph(
        "base/unet",
        Wrapper(),
        {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([1.0, 3.0])},
        {"sample": {0: rows, 2: height}, "timestep": {0: rows}},
    )


@pytest.fixture(scope="module")
def compiled(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("inductor")
    weights, target = folder / "unet", folder / "compiled"
    weights.mkdir()
    target.mkdir()
    save_file(graph.module.unet.state_dict(), weights / "diffusion_pytorch_model.safetensors")
    options = CompileOptions(device=CPU, dtype="fp32", vae_dtype="fp32", weights=weights)
    return Compiled(graph, weights, compile_part(graph, graph.trace(), target, options))


@pytest.fixture
def options(compiled: Compiled) -> PartOptions:
    return PartOptions(info=INFO, device=CPU, weights=compiled.weights)


@pytest.fixture
def moved(compiled: Compiled, tmp_path: Path) -> Iterator[Path]:
    """The package in another folder, which cannot be written to."""
    path = Path(shutil.copy(compiled.path, tmp_path))
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    yield path
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(("rows", "height"), [(1, 8), (2, 8), (5, 3), (63, 64)])
def test_any_rows_and_size(
    compiled: Compiled, options: PartOptions, moved: Path, rows: int, height: int
) -> None:
    part = load(moved, options)
    inputs = {"sample": torch.randn(rows, 4, height, 8), "timestep": torch.rand(rows)}
    with torch.no_grad():
        wanted = compiled.graph.module(**inputs)
    torch.testing.assert_close(part(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_inputs_of_another_dtype_and_layout(compiled: Compiled, options: PartOptions) -> None:
    sample = torch.randn(3, 8, 9, 4)[1:].permute(0, 3, 2, 1)  # strided, not from the start
    inputs = {"sample": sample.double(), "timestep": torch.tensor([1, 2], dtype=torch.float64)}
    with torch.no_grad():
        wanted = compiled.graph.module(sample, inputs["timestep"].float())
    torch.testing.assert_close(load(compiled.path, options)(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_only_the_package_is_left(compiled: Compiled) -> None:
    assert [path.name for path in compiled.path.parent.iterdir()] == ["base-unet.pt2"]


def test_two_parts_share_one_set_of_weights(compiled: Compiled, options: PartOptions) -> None:
    one, other = load(compiled.path, options), load(compiled.path, options)
    pointers = [{t.data_ptr() for t in part._constants.values()} for part in (one, other)]
    assert pointers[0] == pointers[1]
    one.unload()
    inputs = compiled.graph.inputs
    with torch.no_grad():
        wanted = compiled.graph.module(**inputs)
    torch.testing.assert_close(other(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_other_weights_of_the_same_shape_are_taken_from_the_folder(
    compiled: Compiled, options: PartOptions, tmp_path: Path
) -> None:
    tensors = load_file(compiled.weights / "diffusion_pytorch_model.safetensors")
    save_file({**tensors, "0.weight": tensors["0.weight"] * 2}, tmp_path / "a.safetensors")
    same = load(compiled.path, options)(compiled.graph.inputs)
    part = load(compiled.path, replace(options, weights=tmp_path))
    assert not torch.allclose(part(compiled.graph.inputs), same)


def test_missing_and_wrong_weights_are_named(
    compiled: Compiled, options: PartOptions, tmp_path: Path
) -> None:
    here = replace(options, weights=tmp_path)
    with pytest.raises(ConfigurationError, match=r"no \.safetensors file"):
        load(compiled.path, here)
    tensors = load_file(compiled.weights / "diffusion_pytorch_model.safetensors")
    save_file({"2.weight": tensors["2.weight"]}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError, match=r"no tensor '0\."):
        load(compiled.path, here)
    save_file({**tensors, "0.weight": torch.zeros(16, 4, 1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(ArtifactMismatch, match=r"0\.weight is \[16, 4, 1, 1\]"):
        load(compiled.path, here)


@pytest.mark.parametrize(
    ("sample", "timestep", "says"),
    [
        ((2, 3, 8, 8), (2,), r"sample has shape \(2, 3, 8, 8\), not \(rows, 4, height, 8\)"),
        ((2, 4, 8), (2,), "sample has shape"),
        ((2, 4, 8, 8), (3,), r"timestep has shape \(3,\), not \(rows\) where rows=2, height=8"),
    ],
)
def test_other_shapes_are_refused(
    compiled: Compiled,
    options: PartOptions,
    sample: tuple[int, ...],
    timestep: tuple[int, ...],
    says: str,
) -> None:
    """The compiled code would read beyond them."""
    part = load(compiled.path, options)
    with pytest.raises(ValueError, match=says):
        part({"sample": torch.zeros(sample), "timestep": torch.zeros(timestep)})


def test_a_package_that_is_none(options: PartOptions, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load(tmp_path / "base-unet.pt2", options)
    (tmp_path / "base-unet.pt2").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load(tmp_path / "base-unet.pt2", options)


def test_an_export_without_a_compiler_says_so(compiled: Compiled, tmp_path: Path) -> None:
    from torch._inductor import config

    options = CompileOptions(CPU, "fp32", "fp32", compiled.weights)
    missing = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(ExportError, match=r"needs a C\+\+ compiler"):
        compile_part(compiled.graph, compiled.graph.trace(), tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_a_graph_with_a_weight_that_is_not_stored(compiled: Compiled, tmp_path: Path) -> None:
    options = CompileOptions(CPU, "fp32", "fp32", tmp_path)
    with pytest.raises(ExportError, match="is not in its safetensors"):
        compile_part(compiled.graph, compiled.graph.trace(), tmp_path, options)


def test_versions_name_torch_and_what_the_cpu_can_do() -> None:
    assert versions()["torch"] == torch.__version__
    assert versions()["cpu_isa"].split()[0] in ("x86_64", "aarch64", "arm64")
