"""Warming up on a fake device, and the cost profile that is kept beside the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_bento.diffusion.model import Placement
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.fake import FakeClock, FakeExecutor, Faults, UnitCost
from sdxl_bento.engine.request import BatchKey, Stage, Unit
from sdxl_bento.errors import NumericalError
from sdxl_bento.manifest import BackendInfo
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.warmup import keep_profiles, warm_up
from tests.support.loaded_models import CPU, loaded

COSTS = {stage: UnitCost(0.0, 1.0) for stage in Stage}
BASE = BatchKey("tiny", Stage.BASE, 128, 128)


class Device(FakeExecutor):
    """Writes down what it runs."""

    def __init__(self, **faults: Any) -> None:
        super().__init__(FakeClock(), COSTS, Faults(**faults))
        self.done: list[tuple[str, str, int]] = []

    def launch(self, unit: Unit) -> None:
        super().launch(unit)
        self.done.append((unit.key.model, str(unit.key.stage), unit.rows))


def engine(device: Device | None = None) -> Engine:
    device = device or Device()
    return Engine(device, clock=device.clock)


def warm(engine: Engine, *models: Loaded, placement: Placement = CPU) -> dict[str, float]:
    return warm_up(engine, {model.name: model for model in models}, placement)


def files(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in (folder / "profiles").iterdir())


def test_every_unet_is_run_with_and_without_guidance(tmp_path: Path) -> None:
    device, model = Device(), loaded(folder=tmp_path, refiner=True)
    took = warm(engine(device), model)
    one, two = ("tiny", "base", 1), ("tiny", "base", 2)
    refined = ("tiny", "refine", 2)
    assert [each for each in device.done if each[1] in ("base", "refine")] == [
        one, one, two, two, two, refined,
    ]  # fmt: skip
    assert [each[1] for each in device.done].count("decode") == 3
    assert model.served.backend.warmed == 1  # type: ignore[attr-defined]
    assert took.keys() == {"tiny"}
    assert 0 <= took["tiny"] < 60


def test_a_model_without_a_refiner(tmp_path: Path) -> None:
    device = Device()
    warm(engine(device), loaded(folder=tmp_path))
    assert [each[1] for each in device.done].count("decode") == 2
    assert "refine" not in [each[1] for each in device.done]


def test_every_model_has_its_own_profile(tmp_path: Path) -> None:
    models = [loaded(name, folder=tmp_path / name) for name in ("a", "b")]
    for model in models:
        model.served.model.folder.mkdir()
    assert warm(engine(), *models).keys() == {"a", "b"}
    for model in models:
        folder = model.served.model.folder
        assert files(folder) == ["cpu-eager-float32.json"]
        cells = json.loads((folder / "profiles/cpu-eager-float32.json").read_text())
        assert {cell["model"] for cell in cells} == {model.name}
        assert {cell["stage"] for cell in cells} == {"encode", "base", "decode"}
        assert {cell["rows"] for cell in cells if cell["stage"] == "base"} == {1, 2}


def test_a_profile_is_of_one_backend_and_precision(tmp_path: Path) -> None:
    info = BackendInfo(backend="onnx", device="cpu", dtype="bf16", versions={})
    placement = Placement(torch.device("cpu"), torch.bfloat16, "cpu")
    warm(engine(), loaded(folder=tmp_path, info=info), placement=placement)
    assert files(tmp_path) == ["cpu-onnx-cpu-bf16-bfloat16.json"]


def test_a_profile_is_of_one_kind_of_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    warm(engine(), loaded(folder=tmp_path),
         placement=Placement(torch.device("cuda", 0), torch.float16, "cuda"))  # fmt: skip
    assert files(tmp_path) == ["nvidia-h100-80gb-hbm3-eager-float16.json"]


def test_what_was_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    before, model = engine(), loaded(folder=tmp_path)
    warm(before, model)
    before.cost.observe(BASE, 7, 3.5)
    keep_profiles(before, {"tiny": model}, CPU)
    assert files(tmp_path) == ["cpu-eager-float32.json"]  # and no scratch file
    after = engine()
    warm(after, model)
    assert after.cost.unit(BASE, 7) == 3.5


def test_a_profile_counts_under_the_name_that_the_model_has_now(tmp_path: Path) -> None:
    before, model = engine(), loaded("old", folder=tmp_path)
    before.cost.observe(BASE._replace(model="old"), 7, 3.5)
    keep_profiles(before, {"old": model}, CPU)
    after = engine()
    warm(after, loaded("new", folder=tmp_path))
    assert after.cost.unit(BASE._replace(model="new"), 7) == 3.5
    assert after.cost.unit(BASE._replace(model="old"), 7) == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"model": 1}', "[1]", '[{"stage": "base"}]', '[{"model": 1, "stage": "paint"}]',
     '[{"model":"m","stage":"base","height":"x","width":1,"rows":1,"seconds":1}]'],
)  # fmt: skip
def test_a_broken_profile_is_passed_over_and_replaced(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "profiles" / "cpu-eager-float32.json"
    path.parent.mkdir()
    path.write_text(text)
    warm(engine(), loaded(folder=tmp_path))
    assert f"the cost profile {path} is not used: " in caplog.text
    assert json.loads(path.read_text())[0]["model"] == "tiny"


def test_a_missing_profile_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warm(engine(), loaded(folder=tmp_path))
    assert not caplog.records


def test_a_read_only_model_is_warmed_up_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profiles").write_text("a file where the folder should be")
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        assert warm(engine(), loaded(folder=tmp_path))
    assert "the cost profile is not stored: " in caplog.text


def test_a_model_that_cannot_draw_is_refused(tmp_path: Path) -> None:
    device = Device(not_finite={"warm-up/tiny/1": (Stage.BASE, 1)})
    with pytest.raises(NumericalError):
        warm(engine(device), loaded(folder=tmp_path))
    assert not (tmp_path / "profiles").exists()
