"""The other exporter's graphs agree with ours. Its environment needs a network and a minute."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from export.compile.optimum import CONSTRAINTS, environment, export_parts
from export.compile.options import CompileOptions
from export.compile.targets.onnx import compile_part
from export.embedded import WEIGHTS
from export.errors import ExportError
from export.model.components import load_component
from export.model.graphs import (
    Decoder,
    UNetRows,
    UNetSlots,
    decoder_graph,
    slot_example,
    unet_example,
    unet_graph,
)
from sdxl_bento.backends.onnx import load
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.manifest import BackendInfo, Role

CPU = torch.device("cpu")
INFO = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="fp32")
asked_for = pytest.mark.skipif(
    os.environ.get("SDXL_TEST_OPTIMUM") != "1",
    reason="optimum: its environment needs a network; SDXL_TEST_OPTIMUM=1 makes it",
)


def options(role: Role) -> CompileOptions:
    return CompileOptions(CPU, "fp32", "fp32", WEIGHTS / role / "unet")


def part(path: Path, role: Role) -> Part:
    return load(path, PartOptions(INFO, CPU, WEIGHTS / role / "unet", threads=1))


def test_the_pins_are_exact() -> None:
    lines = CONSTRAINTS.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    assert {pin.partition("==")[0] for pin in pins} >= {"optimum", "optimum-onnx", "transformers"}


def test_an_environment_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("sdxl-bento-no-such-package==1\n")
    monkeypatch.setattr("export.compile.optimum.CONSTRAINTS", pins)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    cache = tmp_path / "cache"
    with pytest.raises(ExportError, match=r"cannot be installed.*no-such-package"):
        environment(cache)
    assert list(cache.iterdir()) == []


@asked_for
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_two_exporters_agree(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    found = export_parts(WEIGHTS, "base", theirs, options("base"))
    assert set(found) == {"base/unet", "base/unet_slots", "base/vae_decoder"}
    unet = load_component(WEIGHTS / "base" / "unet", torch.float32, CPU)
    vae = load_component(WEIGHTS / "base" / "vae", torch.float32, CPU)
    for graph in (unet_graph("base", unet, 8), decoder_graph("base", vae, 8)):
        mine = part(compile_part(graph, graph.trace(), ours, options("base")), "base")
        other = part(found[graph.part], "base")
        for rows, height, width in ((1, 16, 16), (3, 8, 24)):
            given = unet_example("base", unet, rows, height, width)
            if graph.part.endswith("vae_decoder"):
                given = {"latents": given["sample"]}
            torch.testing.assert_close(other(given), mine(given), atol=2e-5, rtol=1e-4)


@asked_for
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_optimums_graphs_equal_torch_and_take_adapters(tmp_path: Path) -> None:
    found = export_parts(WEIGHTS, "base", tmp_path, options("base"))
    vae = load_component(WEIGHTS / "base" / "vae", torch.float32, CPU)
    latents = torch.randn(2, 4, 8, 16)
    decoded = part(found["base/vae_decoder"], "base")({"latents": latents})
    torch.testing.assert_close(decoded, Decoder(vae)(latents), atol=2e-5, rtol=1e-4)
    slots = UNetSlots(load_component(WEIGHTS / "base" / "unet", torch.float32, CPU))
    given = unet_example("base", slots.unet, 3, 8, 12)
    given |= slot_example(slots.layout, 3, given["sample"])
    output = part(found["base/unet_slots"], "base")(given)
    torch.testing.assert_close(output, slots(**given), atol=2e-5, rtol=1e-4)


@asked_for
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_refiner_has_five_time_ids(tmp_path: Path) -> None:
    found = export_parts(WEIGHTS, "refiner", tmp_path, options("refiner"))
    assert set(found) == {"refiner/unet", "refiner/vae_decoder"}
    unet = load_component(WEIGHTS / "refiner" / "unet", torch.float32, CPU)
    given = unet_example("refiner", unet, 2, 8, 8)
    output = part(found["refiner/unet"], "refiner")(given)
    torch.testing.assert_close(output, UNetRows(unet)(**given), atol=2e-5, rtol=1e-4)
