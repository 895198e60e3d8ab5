"""The metadata of a request's fields: what is derived, and that it fits what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from sdxl_bento.config import Settings
from sdxl_bento.fields import GROUPS, Control, Wire, bounds, choices, plain_type, range_text, wires
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.infotext import infotext
from sdxl_bento.protocols.a1111 import fields as a1111
from sdxl_bento.protocols.openai import fields as openai

WIRES = wires(GenerateParams)


class Model(BaseModel):
    """Fields of all kinds."""

    plain_field: int = 3
    named: Annotated[float | None, Wire("A name", control=None)] = Field(None, gt=0, le=1)
    share: Annotated[float, Control(), Wire(group="Refiner")] = Field(0.5, gt=0, lt=1)
    count: Annotated[int, Field(ge=-10, le=10)] = 0
    vast: int = Field(0, ge=0, le=2**63 - 1)
    open_ended: int = Field(0, ge=2)
    word: Literal["a", "b"] | None = None
    pair: Annotated[tuple[int, int], "x"] | None = None
    either: int | str = 0


def test_what_is_left_out_comes_from_the_field() -> None:
    assert wires(Model)["plain_field"] == Wire("Plain field")
    assert wires(Model)["named"] == Wire("A name", control=None)
    assert wires(Model)["share"] == Wire("Share", group="Refiner")


@pytest.mark.parametrize(
    ("name", "limits", "text"),
    [
        ("plain_field", (None, None), ""),
        ("named", (0, 1), "over 0 to 1"),
        ("share", (0, 1), "over 0, under 1"),
        ("count", (-10, 10), "from -10 to 10"),
        ("vast", (0, 2**63 - 1), ""),
        ("open_ended", (2, None), ""),
    ],
)
def test_bounds(name: str, limits: tuple[float | None, float | None], text: str) -> None:
    field = Model.model_fields[name]
    assert bounds(field) == limits
    assert range_text(field) == text


def test_types() -> None:
    types = {name: plain_type(field.annotation) for name, field in Model.model_fields.items()}
    assert types["named"] is float
    assert types["pair"] == tuple[int, int]
    assert types["either"] == int | str
    assert choices(Model.model_fields["word"].annotation) == ("a", "b")
    assert choices(Model.model_fields["named"].annotation) == ()


@pytest.mark.parametrize("name", GenerateParams.model_fields)
def test_every_field_says_what_it_is(name: str) -> None:
    wire = WIRES[name]
    assert wire.group in GROUPS
    assert wire.help or wire.cli is None or GenerateParams.model_fields[name].description
    assert wire.setting is None or wire.setting in Settings.model_fields


def test_names_are_those_of_one_field() -> None:
    options = [word for wire in WIRES.values() for word in (wire.cli or "").split()]
    labels = [wire.label for wire in WIRES.values()]
    for names in (options, labels):
        assert len(names) == len(set(names))


def test_names_in_other_protocols() -> None:
    assert openai.RENAMED == {"n": "num_images", "output_compression": "output_quality"}
    renamed = {name: field for name, field in a1111.SAME.items() if name != field}
    assert renamed == {"steps": "num_inference_steps", "cfg_scale": "guidance_scale"}
    fields = openai.to_native({"n": 3, "prompt": "x"}, "generate")[0]
    assert fields == {"num_images": 3, "prompt": "x"}
    fields = a1111.to_native({"prompt": "x", "steps": 7, "width": 64}, None, "generate")
    assert isinstance(fields, dict)
    assert (fields["num_inference_steps"], fields["width"]) == (7, 64)


def test_names_in_a_pictures_file() -> None:
    params = ResolvedParams(
        prompt="x", seed=11, num_inference_steps=12, guidance_scale=13.5, model="m14",
        width=64, height=64, sampler="ddim", refiner=True, high_noise_frac=0.15, strength=0.16,
    )  # fmt: skip
    line = infotext(Resolved("img2img", params)).splitlines()[-1]
    shown = dict(each.split(": ", 1) for each in line.split(", "))
    for name, wire in WIRES.items():
        if wire.infotext and name != "sampler":  # its name there is another one
            assert shown[wire.infotext] == str(getattr(params, name))
    assert {"Steps", "CFG scale", "Seed", "Sampler"} <= {wire.infotext for wire in WIRES.values()}


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", GenerateParams.model_fields)
def test_every_field_is_in_the_native_guide(name: str) -> None:
    text = (ROOT / "docs" / "guides" / "native.md").read_text()
    table = text.partition("## Fields")[2].partition("\n## ")[0]
    negatives = {"original_size", "target_size", "crops_coords_top_left"}  # "the same with ..."
    known = name.removeprefix("negative_") if name.removeprefix("negative_") in negatives else name
    assert f"`{known}`" in table, f"{name} is missing from the fields in docs/guides/native.md"


def test_a_field_with_a_name_in_the_text_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is new to the text needs nothing but its name."""
    params = ResolvedParams(
        prompt="x", model="m", width=64, height=64, seed=1, sampler="ddim", guidance_rescale=0.25
    )
    order = Resolved("generate", params)
    named = WIRES | {"guidance_rescale": Wire("Guidance rescale", infotext="CFG Rescale")}
    assert "CFG Rescale" not in infotext(order)
    monkeypatch.setattr("sdxl_bento.pictures.infotext.wires", lambda _: named)
    assert ", CFG Rescale: 0.25, Version: " in infotext(order)
    plain = order.with_params(guidance_rescale=0.0)
    assert "CFG Rescale" not in infotext(plain)


def test_every_alias_is_documented_and_means_one_field() -> None:
    text = (ROOT / "docs" / "guides" / "native.md").read_text()
    seen: set[str] = set()
    for name, wire in WIRES.items():
        row = next((line for line in text.splitlines() if line.endswith(f"| `{name}` |")), "")
        row = row or next((line for line in text.splitlines() if f"| `{name}`; " in line), "")
        for alias in wire.aliases:
            assert f"`{alias}`" in row, f"{alias} is missing from the aliases in native.md"
            assert alias not in seen | set(WIRES)
            seen.add(alias)
    assert seen
