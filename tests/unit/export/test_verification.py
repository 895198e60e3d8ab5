"""What the verification of parts refuses, with runtimes that go wrong in one place at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export.check import parity, pictures
from export.check.parity import (
    LEAST_PSNR_DB,
    LEAST_PSNR_QUANTIZED_DB,
    UNET_ROWS,
    cases_of,
    least_psnr,
    verify_parts,
    worst_figure,
)
from export.errors import VerificationError
from export.model.components import load_component
from export.model.parts import component_of, has_slots, is_decoder, parts_of, role_of
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.backends.probes import failed_probe
from sdxl_bento.manifest import BackendInfo, ParityFigure, Probe, Size
from tests.support.small_model import SCALE, SmallModel, write_small_model

CPU = torch.device("cpu")
PARTS = (*parts_of("base"), *parts_of("refiner"))
INFO = BackendInfo(
    backend="onnx", device="cpu", versions={}, dtype="fp32", vae_dtype="fp32",
    artifacts={part: part for part in PARTS},
)  # fmt: skip
Inputs = dict[str, torch.Tensor]
Fault = Callable[[str, Inputs, torch.Tensor], torch.Tensor]


@cache
def _read(folder: Path) -> Any:
    return load_component(folder, torch.float32, CPU)


def original(folder: Path, _dtype: object = None, _device: object = None) -> Any:
    """A copy of a component of its own, without reading it again."""
    return deepcopy(_read(folder))


@dataclass
class FakeRuntime:
    """Runs the original in a compiled part's place, and lets `fault` change its outputs."""

    fault: Fault | None = None
    shapes: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)
    loaded: int = 0

    def load(self, path: Path, options: PartOptions) -> Any:
        self.loaded += 1
        part = "/".join(path.parts[-2:])
        return _Part(self, part, parity._as_part(part, original(options.weights)))


class _Part:
    def __init__(self, runtime: FakeRuntime, part: str, module: torch.nn.Module) -> None:
        self._runtime, self._part, self._module = runtime, part, module

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> torch.Tensor:
        sample = inputs["latents" if is_decoder(self._part) else "sample"]
        self._runtime.shapes.setdefault(self._part, set()).add(tuple(sample.shape))
        output: torch.Tensor = self._module(**inputs)
        fault = self._runtime.fault
        return output if fault is None else fault(self._part, inputs, output)

    def unload(self) -> None:
        self._runtime.loaded -= 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return write_small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    fake = FakeRuntime()
    monkeypatch.setattr(parity, "runtime", lambda _: fake)
    monkeypatch.setattr(parity, "load_component", original)
    yield fake
    assert fake.loaded == 0, "each part is unloaded, whatever happens"


def verify(model: SmallModel, info: BackendInfo = INFO) -> dict[str, ParityFigure]:
    figures = verify_parts(info, model.folder, model.pipelines, CPU)
    assert [figure.part for figure in figures] == list(info.artifacts)
    return {figure.part: figure for figure in figures}


def noise(output: torch.Tensor, reference_range: float, psnr_db: float) -> torch.Tensor:
    """`output` with an error that leaves it `psnr_db` from what it was."""
    random = torch.Generator().manual_seed(0)
    error = torch.randn(output.shape, generator=random)
    error *= reference_range * 10 ** (-psnr_db / 20) / error.square().mean().sqrt()
    return output + error


def rows_of(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def test_the_original_passes(model: SmallModel, runtime: FakeRuntime) -> None:
    figures = verify(model)
    assert all(figure.psnr_db is None or figure.psnr_db > 120 for figure in figures.values())


def test_the_probe_of_each_part_is_what_the_service_will_repeat(
    model: SmallModel, runtime: FakeRuntime, tmp_path: Path
) -> None:
    kept: dict[str, tuple[Probe, torch.Tensor]] = {}
    verify_parts(INFO, model.folder, model.pipelines, CPU, kept)
    assert set(kept) == set(INFO.artifacts)
    save_file({part: output for part, (_, output) in kept.items()}, tmp_path / "outputs")
    probes = {part: probe for part, (probe, _) in kept.items()}
    info = INFO.model_copy(update={"probes": probes, "probe_outputs": "outputs"})
    unets: Any = {role: original(model.folder / role / "unet") for role in model.pipelines}
    for spoiled in (None, *kept):
        parts = {}
        for part in kept:
            options = PartOptions(info, CPU, model.folder / role_of(part) / component_of(part))
            parts[part] = runtime.load(Path(part), options)
        runtime.fault = lambda name, _, output, bad=spoiled: output * (0.9 if name == bad else 1)
        found = failed_probe(info, tmp_path, parts, unets, 4, CPU)
        assert found.startswith(f"{spoiled} fails its self-check" if spoiled else "")
        assert bool(found) == bool(spoiled)
        for loaded in parts.values():
            loaded.unload()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_run_and_none_may_be_wrong(
    model: SmallModel, runtime: FakeRuntime, part: str
) -> None:
    runtime.fault = lambda name, _, output: output * 0.9 if name == part else output
    with pytest.raises(VerificationError, match=f"{part} compiled for onnx-cpu-fp32: "):
        verify(model)


@pytest.mark.parametrize("part", ["base/unet", "base/unet_slots", "refiner/unet"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_each_number_of_rows_that_was_compiled_is_run(
    model: SmallModel, runtime: FakeRuntime, part: str, rows: int
) -> None:
    def fault(name: str, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        return output + 1 if name == part and rows_of(inputs) == rows else output

    runtime.fault = fault
    info = INFO.model_copy(update={"rows": (1, 2, 3), "artifacts": {part: part}})
    with pytest.raises(VerificationError, match=f"{part} compiled for"):
        verify(model, info)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_each_size_that_was_compiled_is_run(
    model: SmallModel, runtime: FakeRuntime, part: str, wrong: int
) -> None:
    sizes = (Size(width=16, height=16), Size(width=16, height=24), Size(width=24, height=16))

    def fault(name: str, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        cells = inputs["latents" if is_decoder(name) else "sample"].shape[2:]
        here = cells == (sizes[wrong].height // SCALE, sizes[wrong].width // SCALE)
        return output + 1 if here else output

    runtime.fault = fault
    info = INFO.model_copy(update={"sizes": sizes, "artifacts": {part: part}})
    with pytest.raises(VerificationError, match=f"{part} compiled for"):
        verify(model, info)


def test_where_any_shape_is_allowed_several_are_tried(
    model: SmallModel, runtime: FakeRuntime
) -> None:
    verify(model)
    side = model.pipelines["base"].height // SCALE
    for part in PARTS:
        shapes = runtime.shapes[part]
        if is_decoder(part):
            assert {(1, 4, side, side), (1, 4, side, side * 5 // 4)} < shapes
            assert (2, 4, side // 2, side // 2) in shapes
        else:
            wanted = {(n, 4, side, w) for n in UNET_ROWS for w in (side, side * 5 // 4)}
            assert wanted < shapes
            ((rows, _, *sides),) = shapes - wanted  # what the service repeats
            assert rows == 1
            assert max(sides) < side


def test_decoders_are_tried_with_two_pictures_of_the_smallest_size(model: SmallModel) -> None:
    sizes = (Size(width=32, height=32), Size(width=24, height=16), Size(width=16, height=48))
    info = INFO.model_copy(update={"sizes": sizes})
    cases = list(cases_of("base/vae_decoder", info, model.pipelines["base"]))
    assert [case for case in cases if case.rows == 2] == [cases[-1]]
    assert (cases[-1].height, cases[-1].width) == (8, 12)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_one_wrong_shape_is_the_figure_of_its_part(
    model: SmallModel, runtime: FakeRuntime, rows: int
) -> None:
    """The manifest gets the worst figure, wherever it comes in the order of shapes."""

    def fault(name: str, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        span = float(output.max() - output.min())
        return noise(output, span, 70.0 if rows_of(inputs) == rows else 90.0)

    runtime.fault = fault
    info = INFO.model_copy(update={"rows": (1, 2, 3), "artifacts": {"base/unet": "base/unet"}})
    assert verify(model, info)["base/unet"].psnr_db == pytest.approx(70, abs=0.1)


def test_the_worst_figure_is_the_lowest_and_equality_the_best() -> None:
    figures = [
        ParityFigure(part="base/unet", against="x", max_abs_error=0.1, psnr_db=psnr)
        for psnr in (None, 61.0, 60.5, 88.0)
    ]
    assert worst_figure(figures).psnr_db == 60.5
    assert worst_figure(figures[:1]).psnr_db is None
    with pytest.raises(ValueError, match="empty"):
        worst_figure([])


BACKENDS = [
    *({"dtype": dtype, "vae_dtype": dtype} for dtype in LEAST_PSNR_DB),
    *({"dtype": "fp32", "vae_dtype": "bf16", "quantization": kind}
      for kind in LEAST_PSNR_QUANTIZED_DB),
]  # fmt: skip


@pytest.mark.parametrize("fields", BACKENDS, ids=lambda fields: "-".join(fields.values()))
@pytest.mark.parametrize("part", ["base/unet", "base/vae_decoder", "refiner/unet"])
def test_each_threshold_refuses_what_is_just_below_it(
    model: SmallModel, runtime: FakeRuntime, fields: dict[str, Any], part: str
) -> None:
    info = INFO.model_copy(update=fields | {"artifacts": {part: part}, "rows": (2,)})
    least, psnr = least_psnr(info, part), 0.0

    def fault(_name: str, _inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        return noise(output, float(output.max() - output.min()), psnr)

    runtime.fault = fault
    psnr = least - 0.2
    with pytest.raises(VerificationError, match=f"at least {least} dB are needed"):
        verify(model, info)
    psnr = least + 0.2
    assert verify(model, info)[part].psnr_db == pytest.approx(psnr, abs=0.1)


@pytest.mark.parametrize("part", PARTS)
def test_an_output_of_another_kind_is_refused(
    model: SmallModel, runtime: FakeRuntime, part: str
) -> None:
    info = INFO.model_copy(update={"artifacts": {part: part}})
    runtime.fault = lambda _name, _inputs, output: output.where(output < output.max(), torch.inf)
    with pytest.raises(VerificationError, match=f"{part}: its output is not finite"):
        verify(model, info)
    runtime.fault = lambda _name, _inputs, output: output[:, :, 1:]
    with pytest.raises(VerificationError, match=rf"{part}: its output is \[.*\], not \["):
        verify(model, info)


@pytest.mark.parametrize("part", PARTS)
def test_an_input_that_is_ignored_is_refused(
    model: SmallModel, runtime: FakeRuntime, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the output is within its threshold without that input."""
    info = INFO.model_copy(update={"artifacts": {part: part}})
    case = next(cases_of(part, info, model.pipelines[role_of(part)]))
    right = case.inputs(original(model.folder / role_of(part) / component_of(part)), CPU)
    assert ("slot" in right) == has_slots(part)
    real = _Part.__call__
    for name in right:

        def ignoring(self: _Part, inputs: Inputs, ignored: str = name) -> torch.Tensor:
            same = inputs[ignored].shape == right[ignored].shape
            return real(self, inputs | ({ignored: right[ignored]} if same else {}))

        monkeypatch.setattr(_Part, "__call__", ignoring)
        monkeypatch.setattr(parity, "cases_of", lambda *_: iter([case]))
        monkeypatch.setattr(parity, "probe_case", lambda *_: case)
        with pytest.raises(VerificationError, match=f"{part}: .* depend on the input {name}$"):
            verify(model, info)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_adapters_that_are_ignored_are_refused_whatever_the_threshold(
    model: SmallModel, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """A single row has an adapter too."""
    real = _Part.__call__

    def ignoring(self: _Part, inputs: Inputs) -> torch.Tensor:
        return real(self, inputs | {"slot": torch.zeros_like(inputs["slot"])})

    monkeypatch.setattr(_Part, "__call__", ignoring)
    part = "base/unet_slots"
    fields = {"artifacts": {part: part}, "rows": (rows,), "quantization": "int8"}
    with pytest.raises(VerificationError, match=r"depend on the input slot|dB from the original"):
        verify(model, INFO.model_copy(update=fields))


def test_the_guide_states_the_thresholds() -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "export.md").read_text()
    rows = dict[str, tuple[str, str]]()
    for line in guide.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].endswith(" dB"):
            rows |= dict.fromkeys(cells[0].split(", "), (cells[1], cells[2]))
    expected: dict[str, tuple[str, str]] = {
        dtype: (f"{least:g} dB", f"{pictures.LEAST_PSNR_DB[dtype]:g} dB")
        for dtype, least in LEAST_PSNR_DB.items()
    }
    expected |= {
        kind: (f"{least:g} dB", f"{pictures.LEAST_PSNR_QUANTIZED_DB:g} dB")
        for kind, least in LEAST_PSNR_QUANTIZED_DB.items()
    }
    assert rows == expected
