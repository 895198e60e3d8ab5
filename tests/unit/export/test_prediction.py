"""Noise or velocity: what a file says, in which spelling, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from export.errors import NotSDXLError, SourceError
from export.model.inspection import Folder, read_pipeline
from export.model.prediction import Stated, hint, stated
from sdxl_bento.manifest import PredictionType

KEY = "modelspec.prediction_type"
VELOCITY = (
    "v", "V", "v_prediction", "v-prediction", "V prediction", "vpred", "v_pred", "v-pred",
    "velocity", "v_parameterization",
)  # fmt: skip
EPSILON = ("epsilon", "eps", "Epsilon", "eps_pred", "noise")


@pytest.mark.parametrize("text", VELOCITY)
def test_velocity(text: str) -> None:
    assert stated("x", ["a"], {KEY: text}) == Stated("v_prediction", False)


@pytest.mark.parametrize("text", EPSILON)
def test_epsilon(text: str) -> None:
    assert stated("x", ["a"], {KEY: text}) == Stated("epsilon", False)


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "zero"),
    [
        ([], {}, None, False),
        ([], {KEY: "None"}, None, False),
        ([], {"ss_v_parameterization": "True"}, "v_prediction", False),
        ([], {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "True"}, "epsilon", True),
        ([], {KEY: "v", "ss_v_parameterization": "True"}, "v_prediction", False),
        (["v_pred", "ztsnr"], {}, "v_prediction", True),
        (["model.diffusion_model.v_pred"], {KEY: "vpred"}, "v_prediction", False),
        (["ztsnr"], {}, None, True),
    ],
)
def test_marks_and_notes(
    tensors: list[str], metadata: dict[str, str], prediction: Any, zero: bool
) -> None:
    assert stated("x", tensors, metadata) == Stated(prediction, zero)


def test_a_mark_counts_for_more_than_the_header() -> None:
    said = stated("x", ["v_pred"], {KEY: "epsilon"})
    assert said.prediction == "v_prediction"
    assert "the header has modelspec.prediction_type: 'epsilon'" in said.note


@pytest.mark.parametrize(
    "metadata",
    [{KEY: "flow"}, {KEY: "sample"}, {KEY: "epsilon", "ss_v_parameterization": "True"}],
)
def test_the_user_decides_where_the_header_does_not(metadata: dict[str, str]) -> None:
    with pytest.raises(SourceError, match=f"{KEY}(?s:.)*--prediction-type"):
        stated("x", [], metadata)
    assert stated("x", [], metadata, "epsilon").prediction == "epsilon"
    assert stated("x", ["ztsnr"], metadata, "v_prediction") == Stated("v_prediction", True)


@pytest.mark.parametrize(
    ("name", "prediction", "noted"),
    [
        ("noob_vPred10.safetensors", "epsilon", True),
        ("a/mix-V-Pred", "epsilon", True),
        ("mix-v-pred", "v_prediction", False),
        ("vivid-prediction-free", "epsilon", False),
        ("sdxl", "epsilon", False),
    ],
)
def test_hints_in_names(name: str, prediction: PredictionType, noted: bool) -> None:
    assert bool(hint(name, prediction)) is noted


@pytest.mark.parametrize("text", ["v-prediction", "velocity", "vpred"])
def test_a_folders_config_in_other_spellings(base: Any, text: str) -> None:
    base.set("scheduler/scheduler_config.json", prediction_type=text)
    pipeline = read_pipeline(Folder(base.path), "base", None)
    assert pipeline.geometry.prediction_type == "v_prediction"
    scheduler = pipeline.components["scheduler"]
    assert scheduler.rewritten
    assert scheduler.config["prediction_type"] == "v_prediction"


def test_the_users_word_on_a_folder(base: Any) -> None:
    folder = Folder(base.path)
    as_it_is = read_pipeline(folder, "base", None, "epsilon", False)
    assert not as_it_is.components["scheduler"].rewritten
    changed = read_pipeline(folder, "base", None, "v_prediction", True)
    config = changed.components["scheduler"].config
    assert (config["prediction_type"], config["timestep_spacing"]) == ("v_prediction", "trailing")
    assert config["rescale_betas_zero_snr"] is True
    base.set("scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(NotSDXLError, match="--prediction-type"):
        read_pipeline(folder, "base", None)
    assert read_pipeline(folder, "base", None, "epsilon").geometry.prediction_type == "epsilon"
