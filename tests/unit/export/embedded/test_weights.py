"""The shipped files: they load in plain diffusers, and the pictures show what was asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from export.embedded import WEIGHTS
from export.embedded.checker import analyse
from export.embedded.evaluate import style_scenes, weights_megabytes
from export.embedded.generate import draw_scenes, load_base, load_refiner
from export.embedded.scenes import Scene
from export.embedded.styles import CHECKS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SCENES = [
    Scene("red", "blue", "circle"),
    Scene("yellow", "purple", "square", size="large"),
    Scene("green", "white", "triangle", size="large"),
    Scene("white", "green", "heart", count=2, size="large"),
]


@pytest.fixture(scope="module")
def base() -> Any:
    torch.set_num_threads(1)
    return load_base()


@pytest.fixture(scope="module")
def pictures(base: Any) -> list[Image.Image]:
    return draw_scenes(base, SCENES, seed=7)


def test_pictures_show_what_was_asked_for(pictures: list[Image.Image]) -> None:
    for scene, picture in zip(SCENES, pictures, strict=True):
        assert picture.size == (128, 128)
        assert all(analyse(picture).matches(scene).values()), scene


@pytest.mark.parametrize("size", [(192, 128), (256, 256), (96, 160)])
def test_other_sizes_show_the_colours(base: Any, size: tuple[int, int]) -> None:
    (picture,) = draw_scenes(base, SCENES[:1], size=size, steps=15)
    found = analyse(picture)
    assert picture.size == size
    assert (found.colour, found.background) == ("red", "blue")


def test_the_refiner_finishes_what_the_base_leaves(base: Any) -> None:
    pictures = draw_scenes(base, SCENES, seed=7, refiner=load_refiner())
    right = [all(analyse(p).matches(s).values()) for s, p in zip(SCENES, pictures, strict=True)]
    assert sum(right) >= 3


@pytest.fixture(params=sorted(CHECKS))
def style(request: pytest.FixtureRequest, base: Any) -> Iterator[str]:
    base.load_lora_weights(WEIGHTS / "loras", weight_name=f"{request.param}.safetensors")
    yield request.param
    base.unload_lora_weights()


def test_a_lora_shows_its_style(base: Any, style: str) -> None:
    scenes = style_scenes(4)
    styled = draw_scenes(base, scenes, steps=20)
    assert sum(CHECKS[style](p, s) for p, s in zip(styled, scenes, strict=True)) >= 3


def test_without_a_lora_the_styles_are_absent(base: Any) -> None:
    scenes = style_scenes(4)
    plain = draw_scenes(base, scenes, steps=20)
    for check in CHECKS.values():
        assert not any(check(p, s) for p, s in zip(plain, scenes, strict=True))


def test_the_loras_come_in_both_key_styles() -> None:
    striped, outlined = (
        list(load_file(WEIGHTS / "loras" / f"{name}.safetensors"))
        for name in ("striped", "outlined")
    )
    assert all(name.startswith("unet.") and ".lora_" in name for name in striped)
    ends = {name.split(".", 1)[1] for name in outlined}
    assert all(name.startswith("lora_unet_") for name in outlined)
    assert ends == {"lora_down.weight", "lora_up.weight", "alpha"}


def test_the_files_are_small_and_in_half_precision() -> None:
    assert weights_megabytes(WEIGHTS) <= 20
    for path in WEIGHTS.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}, path


def test_the_configurations_name_no_place() -> None:
    for path in WEIGHTS.rglob("*.json"):
        values = json.loads(path.read_text())
        assert not {"_name_or_path", "is_local", "local_files_only"} & set(values), path


def test_the_scheduler_configuration_serves_other_schedulers() -> None:
    for name in ("base", "refiner"):
        path: Path = WEIGHTS / name / "scheduler" / "scheduler_config.json"
        values = json.loads(path.read_text())
        assert values["clip_sample"] is False
        assert values["prediction_type"] == "epsilon"
