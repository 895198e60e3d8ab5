"""A field's option follows from the field's definition."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from sdxl_bento.cli import generate as generate_module
from sdxl_bento.cli.app import app
from sdxl_bento.cli.fields import Fields, option_name
from sdxl_bento.cli.options import Json, Quiet, sets_fields
from sdxl_bento.fields import Wire, wires
from sdxl_bento.params import GenerateParams

WIRES = wires(GenerateParams)
# For each field of `generate`: what is written, and what it means.
WRITTEN: dict[str, tuple[str, object]] = {
    "prompt_2": ("other", "other"),
    "negative_prompt": ("", ""),
    "negative_prompt_2": ("no", "no"),
    "model": ("sdxl:one", "sdxl:one"),
    "width": ("64", 64),
    "height": ("72", 72),
    "num_inference_steps": ("7", 7),
    "guidance_scale": ("0", 0.0),
    "guidance_rescale": ("0.25", 0.25),
    "seed": ("0", 0),
    "num_images": ("2", 2),
    "sampler": ("ddim", "ddim"),
    "refiner": ("", True),
    "high_noise_frac": ("0.5", 0.5),
    "aesthetic_score": ("3", 3.0),
    "negative_aesthetic_score": ("4", 4.0),
    "original_size": ("1024x768", [768, 1024]),
    "target_size": ("10x20", [20, 10]),
    "crops_coords_top_left": ("1,2", [1, 2]),
    "negative_original_size": ("11x12", [12, 11]),
    "negative_target_size": ("13x14", [14, 13]),
    "negative_crops_coords_top_left": ("3,4", [3, 4]),
    "loras": ("a=0.5", [{"name": "a", "scale": 0.5}]),
    "lora_late_ok": ("", True),
    "slo_ms": ("900", 900.0),
    "priority": ("-3", -3),
    "degrade_min_steps": ("5", 5),
    "output_format": ("webp", "webp"),
    "output_quality": ("80", 80),
}


class More(GenerateParams):
    """The fields of a call, and new ones by their definitions alone."""

    eta: float = Field(0.0, ge=0.0, le=1.0, description="Noise of each step.")
    clip_skip: Annotated[int | None, Wire("Clip skip", group="Prompt", cli="--clip-skip -c")] = None
    tiling: bool = Field(False, description="Make it tile.")
    mode: Literal["fast", "good"] = "good"


def command(model: type[GenerateParams], seen: list[Any]) -> typer.Typer:
    """A command with the options of a model's fields that notes what it gets."""
    alone = typer.Typer(add_completion=False)

    @alone.command()
    @sets_fields(model=model)
    def draw(fields: Fields, *, quiet: Quiet = False, as_json: Json = False) -> None:
        seen.append((fields, quiet, as_json))

    return alone


def test_every_field_arrives_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Fields] = []

    class Drawn(Exception):
        pass

    async def draw(url: object, fields: Fields, *rest: object, **more: object) -> None:
        seen.append(fields)
        raise Drawn

    monkeypatch.setattr(generate_module, "_draw", draw)
    of_pictures = {name for name, wire in WIRES.items() if wire.group == "Image to image"}
    optional = [name for name, wire in WIRES.items() if wire.cli is not None]
    assert WRITTEN.keys() == set(optional) - of_pictures, "which field is missing here?"
    words = []
    for name, (text, _) in WRITTEN.items():
        words += [option_name(name, WIRES[name]), *([] if WRITTEN[name][1] is True else [text])]
    result = CliRunner().invoke(app, ["generate", "x", *words])
    assert isinstance(result.exception, Drawn), result.stderr
    assert seen == [{"prompt": "x", **{name: value for name, (_, value) in WRITTEN.items()}}]
    GenerateParams.model_validate(seen[0])


def test_nothing_else_is_sent() -> None:
    seen: list[Any] = []
    assert CliRunner().invoke(command(GenerateParams, seen), ["--json"]).exit_code == 0
    assert seen == [({}, False, True)]


def test_a_new_field_is_an_option_by_its_definition() -> None:
    seen: list[Any] = []
    alone = command(More, seen)
    words = ["--eta", "0.5", "-c", "2", "--no-tiling", "--mode", "fast", "--quiet"]
    assert CliRunner().invoke(alone, words).exit_code == 0
    assert seen == [({"eta": 0.5, "clip_skip": 2, "tiling": False, "mode": "fast"}, True, False)]
    parameters = {each.name: each for each in typer.main.get_command(alone).params}
    assert parameters["eta"].help == "Noise of each step. From 0 to 1."  # type: ignore[attr-defined]
    assert parameters["clip_skip"].rich_help_panel == "Prompt"  # type: ignore[attr-defined]


def test_options_stand_panel_by_panel() -> None:
    parameters = typer.main.get_command(app).commands["generate"].params  # type: ignore[attr-defined]
    names = [each.name for each in parameters]
    panels = list(dict.fromkeys(getattr(each, "rich_help_panel", None) for each in parameters))
    assert panels == [
        None, "Prompt", "Picture", "Image to image", "Refiner", "Micro-conditioning",
        "Deadline and priority", "Output",
    ]  # fmt: skip
    for before, after in (
        ("height", "size"), ("size", "num_inference_steps"), ("image", "strength"),
        ("strength", "refine_only"), ("force", "output_format"), ("output_quality", "quiet"),
    ):  # fmt: skip
        assert names.index(before) + 1 == names.index(after)


def test_a_type_that_no_option_holds_is_named() -> None:
    class Odd(GenerateParams):
        masks: tuple[int, ...] = ()

    with pytest.raises(TypeError, match="the field masks has the type"):
        command(Odd, [])


def test_size_is_there_only_with_a_width() -> None:
    def draw(fields: Fields, *, quiet: Quiet = False) -> None:
        """Draw."""

    def names(*fields: str) -> list[str]:
        return list(inspect.signature(sets_fields(fields)(draw)).parameters)

    assert names("seed") == ["seed", "quiet"]
    assert names("width", "height") == ["width", "height", "size", "quiet"]
    assert names("output_quality", "output_format")[1:] == ["output_quality", "quiet"]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--original-size", "wide"], "--original-size"),
        (["--negative-target-size", "1,2"], "--negative-target-size"),
        (["--crops-coords-top-left", "1x2"], "--crops-coords-top-left"),
        (["--size", "64x64", "--height", "64"], "--size"),
        (["--lora", "a=x"], "--lora"),
    ],
)
def test_an_error_names_the_option(words: list[str], option: str) -> None:
    result = CliRunner().invoke(command(GenerateParams, []), words)
    assert result.exit_code == 2
    assert f"Invalid value for {option}" in result.stderr
