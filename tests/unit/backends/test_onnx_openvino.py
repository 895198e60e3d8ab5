"""A small UNet as ONNX and as OpenVINO's IR, made and run for real, against torch."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from export.compile.calibration import watch_layers
from export.compile.onnx_graph.quantize import quantize
from export.compile.onnx_graph.slots import add_slots
from export.compile.onnx_graph.static import Ranges
from export.compile.targets import onnx as to_onnx
from export.compile.targets import openvino as to_openvino
from export.errors import ExportError
from export.likeness import psnr_db
from export.model.graphs import Graph, UNetRows, slot_example, unet_example
from sdxl_bento.backends import onnx as by_onnx
from sdxl_bento.backends import openvino as by_openvino
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo, Quantization
from tests.support.small_unet import CPU, compile_options, small_graph, small_unet

TARGETS: Mapping[str, tuple[Any, Any]] = {
    "onnx": (to_onnx, by_onnx),
    "openvino": (to_openvino, by_openvino),
}
Inputs = dict[str, torch.Tensor]


@dataclass
class Compiled:
    """The files of one target; `folder` may be moved."""

    folder: Path
    plain: Path
    slots: Path
    runtime: Any
    options: PartOptions

    def load(self, *, slots: bool = False, **changes: Any) -> Part:
        path = self.folder / (self.slots if slots else self.plain)
        part: Part = self.runtime.load(path, replace(self.options, **changes))
        return part


@pytest.fixture(scope="module")
def plain() -> Graph:
    return small_graph()


@pytest.fixture(scope="module")
def slots() -> Graph:
    return small_graph(slots=True)


@pytest.fixture(scope="module")
def all_compiled(
    plain: Graph, slots: Graph, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Compiled]:
    program = plain.trace()
    root = tmp_path_factory.mktemp("compiled")
    options = compile_options(root)
    found = {}
    for name, (target, runtime) in TARGETS.items():
        folder = root / name
        folder.mkdir()
        info = BackendInfo(backend=name, device="cpu", versions={}, dtype="fp32")  # type: ignore[arg-type]
        found[name] = Compiled(
            folder,
            target.compile_part(plain, program, folder, options).relative_to(folder),
            target.compile_part(slots, None, folder, options).relative_to(folder),
            runtime,
            PartOptions(info, CPU, options.weights, threads=1),
        )
    return found


@pytest.fixture(params=list(TARGETS))
def compiled(request: pytest.FixtureRequest, all_compiled: dict[str, Compiled]) -> Compiled:
    return all_compiled[request.param]


@pytest.fixture
def moved(compiled: Compiled, tmp_path: Path) -> Iterator[Compiled]:
    """The same in another folder, which cannot be written to."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(compiled.folder, folder)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    yield replace(compiled, folder=folder)
    folder.chmod(0o755)


@pytest.fixture(scope="module")
def ranges(plain: Graph) -> Ranges:
    """Of the layers, over a few forwards."""
    unet: Any = small_unet()
    found = watch_layers(unet)
    with torch.no_grad():
        for rows in (1, 3):
            UNetRows(unet)(**inputs(rows, 8, 6))
    return found


def inputs(rows: int, height: int, width: int) -> Inputs:
    return unet_example("base", small_unet(), rows, height, width)


@torch.no_grad()
def test_any_rows_and_sizes_equal_torch(compiled: Compiled, plain: Graph) -> None:
    part = compiled.load()
    for shape in ((1, 4, 4), (3, 8, 6), (2, 2, 10)):
        given = inputs(*shape)
        torch.testing.assert_close(part(given), plain.module(**given), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_adapters_of_any_number_and_rank_equal_torch(compiled: Compiled, slots: Graph) -> None:
    part = compiled.load(slots=True)
    given = inputs(3, 8, 6)
    tables = slot_example(slots.module.layout, 3, given["sample"])
    random = torch.Generator().manual_seed(1)
    for count, rank in ((3, 8), (5, 16)):
        tables["slot"] = torch.tensor([count - 1, 0, 1])
        for name in ("down", "up"):
            table = torch.randn(count, rank, tables[name].shape[2], generator=random) * 0.1
            tables[name] = table
        expected = slots.module(**given, **tables)
        torch.testing.assert_close(part(given | tables), expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_slot_zero_of_zeros_is_the_plain_graph(compiled: Compiled, slots: Graph) -> None:
    given = inputs(2, 4, 4)
    tables = slot_example(slots.module.layout, 2, given["sample"])
    tables["slot"] = torch.zeros(2, dtype=torch.int64)
    with_slots = compiled.load(slots=True)(given | tables)
    torch.testing.assert_close(with_slots, compiled.load()(given), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_runs_where_it_was_copied_to_and_cannot_write(moved: Compiled, plain: Graph) -> None:
    given = inputs(2, 4, 4)
    part = moved.load(cache=moved.folder / "cache")
    torch.testing.assert_close(part(given), plain.module(**given), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_takes_any_floating_dtype(compiled: Compiled) -> None:
    part = compiled.load()
    given = inputs(2, 4, 4)
    half = {name: tensor.half() for name, tensor in given.items()}
    again = {name: tensor.float() for name, tensor in half.items()}
    torch.testing.assert_close(part(half), part(again), check_dtype=False)


def test_an_output_stays_when_the_part_runs_again(compiled: Compiled) -> None:
    part = compiled.load()
    first = part(inputs(2, 4, 4))
    kept = first.clone()
    part({name: tensor * 2 for name, tensor in inputs(2, 4, 4).items()})
    torch.testing.assert_close(first, kept, atol=0, rtol=0)


def test_the_weights_stand_once(compiled: Compiled) -> None:
    weights = sum(p.numel() for p in small_unet().parameters()) * 4
    files = [path for path in compiled.folder.iterdir() if path.suffix in (".data", ".bin")]
    assert len(files) == 1
    assert 0.9 * weights < files[0].stat().st_size < 1.1 * weights  # small ones may be in the graph


def test_nothing_of_this_machine_is_written(all_compiled: dict[str, Compiled]) -> None:
    here = str(Path(__file__).resolve().parents[3]).encode()
    for compiled in all_compiled.values():
        for path in compiled.folder.iterdir():
            assert here not in path.read_bytes(), path.name
    model = onnx.load(all_compiled["onnx"].folder / "base_unet.onnx", load_external_data=False)
    assert not any(node.metadata_props for node in model.graph.node)


def test_openvino_takes_graphs_that_are_there(
    all_compiled: dict[str, Compiled], plain: Graph, slots: Graph, tmp_path: Path
) -> None:
    graphs, made = all_compiled["onnx"].folder, all_compiled["openvino"]
    options = compile_options(tmp_path, graphs=graphs)
    folder = tmp_path / "openvino"
    folder.mkdir()
    for graph in (plain, slots):
        assert not to_openvino.traces(graph.part, options)
        to_openvino.compile_part(graph, None, folder, options)
    assert {path.name for path in folder.iterdir()} == {p.name for p in made.folder.iterdir()}
    given = inputs(3, 8, 6)
    tables = slot_example(slots.module.layout, 3, given["sample"])
    for is_slots in (False, True):
        tensors = given | tables if is_slots else given
        found = replace(made, folder=folder).load(slots=is_slots)(tensors)
        torch.testing.assert_close(found, made.load(slots=is_slots)(tensors), atol=0, rtol=0)


def test_no_sequences_are_left(all_compiled: dict[str, Compiled]) -> None:
    """Neither CUDA nor TensorRT could run them."""
    model = onnx.load(all_compiled["onnx"].folder / "base_unet.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert not any("Sequence" in kind for kind in kinds)
    assert kinds.count("Split") == kinds.count("Gelu") > 0


def test_slots_need_the_plain_graph(slots: Graph, tmp_path: Path) -> None:
    for target, _ in TARGETS.values():
        folder = tmp_path / target.__name__
        folder.mkdir()
        with pytest.raises(ExportError, match=r"base_unet\.onnx is to be written before"):
            target.compile_part(slots, None, folder, compile_options(tmp_path))


def test_a_missing_file_is_named(compiled: Compiled, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing-here"):
        compiled.runtime.load(tmp_path / "nothing-here", compiled.options)


def test_a_broken_file_is_named(moved: Compiled) -> None:
    path = moved.folder / moved.plain
    path.chmod(0o644)
    path.write_bytes(b"not a graph")
    with pytest.raises(ConfigurationError, match=path.name):
        moved.load()


def test_an_impossible_size_is_an_error_of_the_run(compiled: Compiled) -> None:
    part = compiled.load()
    given = inputs(2, 4, 4)
    given["text_embeds"] = given["text_embeds"][:, :-1]
    with pytest.raises(RuntimeError, match=r"(?i)onnx runtime|openvino"):
        part(given)


def test_an_unloaded_part_cannot_be_used(compiled: Compiled) -> None:
    part = compiled.load()
    part.unload()
    with pytest.raises((RuntimeError, AttributeError)):
        part(inputs(2, 4, 4))


def test_a_device_without_its_provider_is_refused(all_compiled: dict[str, Compiled]) -> None:
    onnx_part, ir = all_compiled["onnx"], all_compiled["openvino"]
    with pytest.raises(ConfigurationError, match="runs on the CPU"):
        ir.load(device=torch.device("cuda"))
    if "CUDAExecutionProvider" not in by_onnx.available_providers():
        with pytest.raises(ConfigurationError, match="CUDAExecutionProvider"):
            onnx_part.load(device=torch.device("cuda"))


def test_openvino_keeps_what_it_compiled(all_compiled: dict[str, Compiled], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    first = all_compiled["openvino"].load(cache=cache)
    kept = {path.name for path in cache.iterdir()}
    assert kept
    compiled = all_compiled["openvino"]
    weights = (compiled.folder / compiled.plain).with_suffix(".bin").read_bytes()
    some = weights[len(weights) // 2 :][:256]  # which the cache does not repeat
    assert not any(some in path.read_bytes() for path in cache.iterdir())
    second = all_compiled["openvino"].load(cache=cache)
    assert {path.name for path in cache.iterdir()} == kept
    given = inputs(2, 4, 4)
    torch.testing.assert_close(first(given), second(given), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8-weights", "int8", "int8-static"])
def test_eight_bits_are_close_and_take_adapters(
    kind: Quantization,
    all_compiled: dict[str, Compiled],
    plain: Graph,
    slots: Graph,
    tmp_path: Path,
    ranges: Ranges,
) -> None:
    compiled = all_compiled["onnx"]
    shutil.copytree(compiled.folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / compiled.plain
    before = path.with_suffix(".data").stat().st_size
    quantize(path, kind, ranges)
    add_slots(path, tmp_path / compiled.slots, slots.module.layout)
    to_onnx.check(path)
    to_onnx.check(tmp_path / compiled.slots)
    here = replace(compiled, folder=tmp_path)
    given = inputs(3, 8, 6)
    reference = plain.module(**given)
    output = here.load()(given)
    assert 25 < psnr_db(output, reference) < 90  # it is another number, and not far off
    assert path.with_suffix(".data").stat().st_size < before
    tables = slot_example(slots.module.layout, 3, given["sample"])
    with_adapters = here.load(slots=True)(given | tables)
    assert psnr_db(with_adapters, slots.module(**given, **tables)) > 25


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8-weights", "int8", "int8-static"])
def test_openvino_runs_eight_bits(
    kind: Quantization,
    all_compiled: dict[str, Compiled],
    plain: Graph,
    slots: Graph,
    tmp_path: Path,
    ranges: Ranges,
) -> None:
    source, made = all_compiled["onnx"], all_compiled["openvino"]
    shutil.copytree(source.folder, tmp_path, dirs_exist_ok=True)
    written = "int8-weights" if kind == "int8" else kind
    quantize(tmp_path / source.plain, written, ranges, outputs=False)
    add_slots(tmp_path / source.plain, tmp_path / source.slots, slots.module.layout)
    info = made.options.info.model_copy(update={"quantization": kind})
    here = replace(made, folder=tmp_path, options=replace(made.options, info=info))
    for name in (source.plain, source.slots):
        to_openvino.convert(tmp_path / name, (tmp_path / name).with_suffix(".xml"), tmp_path)
    given = inputs(3, 8, 6)
    assert 25 < psnr_db(here.load()(given), plain.module(**given)) < 90
    tables = slot_example(slots.module.layout, 3, given["sample"])
    with_adapters = here.load(slots=True)(given | tables)
    assert psnr_db(with_adapters, slots.module(**given, **tables)) > 25


def test_static_numbers_are_of_eight_bits(
    all_compiled: dict[str, Compiled], tmp_path: Path, ranges: Ranges
) -> None:
    """Each layer that is large reads rounded numbers; what is sensitive reads none."""
    compiled = all_compiled["onnx"]
    shutil.copytree(compiled.folder, tmp_path, dirs_exist_ok=True)
    quantize(tmp_path / compiled.plain, "int8-static", ranges)
    model = onnx.load(tmp_path / compiled.plain, load_external_data=False)
    makers = {node.output[0]: node.op_type for node in model.graph.node}
    kinds = {
        node.input[1]: makers.get(node.input[0])
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    assert kinds.pop("unet.conv_in.weight") != kinds["unet.mid_block.resnets.0.conv1.weight"]
    assert kinds["unet.conv_out.weight"] != "DequantizeLinear"
    assert kinds["unet.mid_block.resnets.0.conv1.weight"] == "DequantizeLinear"


def test_static_numbers_need_ranges(all_compiled: dict[str, Compiled], tmp_path: Path) -> None:
    compiled = all_compiled["onnx"]
    shutil.copytree(compiled.folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ExportError, match=r"down_blocks.*: no range was measured for it"):
        quantize(tmp_path / compiled.plain, "int8-static", {})


def test_other_kinds_of_eight_bits_are_refused(
    all_compiled: dict[str, Compiled], tmp_path: Path
) -> None:
    compiled = all_compiled["onnx"]
    path = Path(shutil.copy(compiled.folder / compiled.plain, tmp_path))
    with pytest.raises(ExportError, match="int8-weights, int8, int8-static"):
        quantize(path, "fp8")


def test_openvino_reports_nothing_to_its_makers() -> None:
    script = (
        "from sdxl_bento.backends.openvino import import_openvino\n"
        "import_openvino()\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert 'stub' in telemetry_utils.tm.__name__, telemetry_utils.tm"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


SIGNALLED = """
import faulthandler, pickle, signal, sys
faulthandler.enable()  # has a stack for signal handlers, as a process of the tests has
from sdxl_bento.backends.openvino import load
path, options = pickle.loads(bytes.fromhex(sys.argv[1]))
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
first, second = load(path, options), load(path, options)
first.unload()
del first
second.unload()
del second
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_handled_after_openvino_was_used(all_compiled: dict[str, Compiled]) -> None:
    compiled = all_compiled["openvino"]
    given = pickle.dumps((compiled.folder / compiled.plain, compiled.options)).hex()
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, given],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
