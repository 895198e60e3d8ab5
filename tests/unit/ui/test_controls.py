"""A field's control on the page follows from the field's definition."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from sdxl_bento.fields import Wire, wires
from sdxl_bento.params import GenerateParams
from sdxl_bento.ui import render
from sdxl_bento.ui.album import Entry
from sdxl_bento.ui.controls import CONTROLS, FieldControl, field_controls
from sdxl_bento.ui.form import LABELS, MAX_LORAS, Form, from_call, to_call

WIRES = wires(GenerateParams)
# Fields that the page has elements of its own for: it shows more than the value of one field.
OWN = {"prompt", "model", "width", "height", "seed", "loras"}
ROOT = Path(__file__).resolve().parents[3]


class More(GenerateParams):
    """The fields of a call, and new ones by their definitions alone."""

    eta: float = Field(0.0, ge=0.0, le=1.0)
    clip_skip: Annotated[int | None, Wire("Layers to skip")] = Field(None, ge=0, le=11)
    tiling: bool = True
    mode: Literal["fast", "good"] = "good"
    style: Literal["ink", "oil"] | None = None
    mask_blur: Annotated[int, Wire(group="Image to image")] = Field(4, ge=0, le=64)


NEW = {name: each for name, each in field_controls(More).items() if name not in CONTROLS}


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page with the new fields."""
    for name, control in NEW.items():
        monkeypatch.setitem(CONTROLS, name, control)


@pytest.mark.parametrize("name", GenerateParams.model_fields)
def test_every_field_is_on_the_page_or_says_that_it_is_not(name: str) -> None:
    control = WIRES[name].control
    if control is None:
        assert name not in CONTROLS
    else:
        assert (control.kind == "own") == (name in OWN) == (name not in CONTROLS)


def test_kinds_and_ranges() -> None:
    kinds = {name: control.kind for name, control in NEW.items()}
    assert kinds == {
        "eta": "slider", "clip_skip": "number", "tiling": "switch", "mode": "choice",
        "style": "choice", "mask_blur": "slider",
    }  # fmt: skip
    assert NEW["eta"] == FieldControl(
        "slider", "eta", "Eta", "Picture", 0.0, 0.0, low=0.0, high=1.0, step=0.01
    )
    assert (NEW["clip_skip"].label, NEW["clip_skip"].step) == ("Layers to skip", 1)
    assert NEW["style"].choices == ("ink", "oil")
    steps, strength = CONTROLS["num_inference_steps"], CONTROLS["strength"]
    assert (steps.low, steps.high, steps.initial) == (1, 200, 25)
    assert (strength.low, strength.high, strength.initial) == (0.05, 1.0, 0.6)
    assert CONTROLS["guidance_scale"].high == 20


def test_a_type_that_no_control_holds_is_named() -> None:
    class Odd(GenerateParams):
        masks: tuple[int, ...] = ()

    with pytest.raises(TypeError, match="the field masks has the type"):
        field_controls(Odd)


@pytest.mark.parametrize(
    ("name", "shown", "value"),
    [
        ("eta", 0.0, 0.0),
        ("clip_skip", None, None),
        ("clip_skip", 0, 0),
        ("tiling", True, None),
        ("tiling", False, False),
        ("mode", "fast", "fast"),
        ("style", "", None),
        ("style", "ink", "ink"),
    ],
)
@pytest.mark.usefixtures("more")
def test_what_is_shown_and_what_is_sent(name: str, shown: object, value: object) -> None:
    assert CONTROLS[name].to_field(shown) == value
    if value is not None:
        assert CONTROLS[name].to_shown(value) == shown


def test_what_is_unset_is_shown_as_empty() -> None:
    shown = {name: NEW[name].to_shown(None) for name in ("style", "clip_skip")}
    assert shown == {"style": "", "clip_skip": None}
    assert CONTROLS["negative_prompt"].to_shown(None) == ""


@pytest.mark.usefixtures("more")
def test_a_new_field_goes_into_a_call_and_comes_back() -> None:
    new = {"eta": 0.5, "clip_skip": 2, "tiling": False, "mode": "fast", "style": "ink"}
    form = Form(prompt="x", controls=Form().controls | new | {"mask_blur": 9})
    plain, redrawn = to_call(form), to_call(form, with_picture=True)
    assert {name: plain[name] for name in new} == new
    assert "mask_blur" not in plain
    assert redrawn == plain | {"mask_blur": 9, "strength": 0.6}
    call = More(model="m", width=64, height=64, **redrawn).model_dump(mode="json")
    assert from_call(call, 1, with_picture=True).controls == form.controls
    assert from_call(call, 1, with_picture=False).controls["mask_blur"] == 4
    assert Form.of(form.values()) == form


@pytest.mark.usefixtures("more")
def test_a_new_field_is_told_with_the_picture() -> None:
    call = More(prompt="x", model="m", sampler="ddim", eta=0.25, tiling=False, num_images=3)
    drawn = Entry("i", "png", 1, 64, 64, call.model_dump(mode="json"), 1.0)
    rows = render.facts(drawn)
    assert rows[5:] == [("Eta", "0.25"), ("Tiling", "no"), ("Model", "m"), ("Time", "1.00 s")]


def test_errors_name_the_labels() -> None:
    assert {LABELS[name] for name in ("num_inference_steps", "loras", "slo_ms", "image_id")} == {
        "Steps", "LoRAs", "Deadline (ms)", "Picture",
    }  # fmt: skip
    assert LABELS["width"] == "Size (width)"


BUILD = """
import json, sys
import gradio as gr
from sdxl_bento.config import Settings
from sdxl_bento.ui.controls import CONTROLS
from sdxl_bento.ui.layout import build
from tests.unit.ui.test_controls import NEW

CONTROLS |= NEW
with gr.Blocks():
    layout = build(Settings(max_steps=90, max_images=4))
order = [each.elem_id for each in layout.form]
known = ("elem_id", "label", "minimum", "maximum", "step", "precision", "value", "choices")
fields = {
    name: {each: getattr(element, each, None) for each in known} | {"parent": element.parent._id}
    for name, element in layout.fields.items()
}
json.dump({"order": order, "fields": fields}, sys.stdout)
"""


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_the_page_has_an_element_for_each(more: None) -> None:
    """Gradio leaves sockets and a loop open, so it has a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    built = json.loads(done.stdout)
    order, fields = built["order"], built["fields"]
    names = [control.name for control in CONTROLS.values()]
    weights = [f"weight-{slot}" for slot in range(MAX_LORAS)]
    own = ["prompt", "model-choice", "size", "random", "seed"]
    assert order == [f"sb-{name}" for name in (*own, *names, "loras", *weights)]
    assert {name: each["label"] for name, each in fields.items()} == {
        name: control.label for name, control in CONTROLS.items()
    }
    assert {name: each["value"] for name, each in fields.items()} == Form().controls
    sliders = {name: (each["minimum"], each["maximum"], each["step"])
               for name, each in fields.items() if CONTROLS[name].kind == "slider"}  # fmt: skip
    assert sliders == {
        "num_inference_steps": (1, 90, 1),
        "guidance_scale": (0, 20, 0.1),
        "num_images": (1, 4, 1),
        "strength": (0.05, 1, 0.05),
        "eta": (0, 1, 0.01),
        "mask_blur": (0, 64, 1),
    }
    assert (fields["clip_skip"]["maximum"], fields["clip_skip"]["precision"]) == (11, 0)
    assert [value for _, value in fields["style"]["choices"]] == ["", "ink", "oil"]
    assert [value for _, value in fields["mode"]["choices"]] == ["fast", "good"]
    assert fields["mask_blur"]["parent"] == fields["strength"]["parent"]
    assert fields["eta"]["parent"] == fields["sampler"]["parent"] != fields["strength"]["parent"]
