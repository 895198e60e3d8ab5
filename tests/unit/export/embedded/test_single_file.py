"""The checkpoint in SDXL's original layout, read back by diffusers' own converters."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from export.embedded import WEIGHTS
from export.embedded.single_file import SECOND, main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
BASE = WEIGHTS / "base"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("single") / "shapes.safetensors"
    main([str(path)])
    return path


@pytest.mark.parametrize(("kind", "name"), [(UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")])
def test_unet_and_autoencoder_come_back(
    packed: Path, kind: type[UNet2DConditionModel] | type[AutoencoderKL], name: str
) -> None:
    back = kind.from_single_file(str(packed), config=str(BASE), subfolder=name).state_dict()
    original = kind.from_pretrained(BASE / name).state_dict()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key].float(), value) for key, value in original.items())


def test_the_first_text_encoder_comes_back(packed: Path) -> None:
    back = convert_ldm_clip_checkpoint(load_file(packed))
    original = CLIPTextModel.from_pretrained(BASE / "text_encoder").state_dict()
    plain = {key.removeprefix("text_model."): value for key, value in back.items()}
    assert plain.keys() == {key.removeprefix("text_model.") for key in original}
    for key, value in original.items():
        assert torch.equal(plain[key.removeprefix("text_model.")].float(), value.float())


def test_the_second_text_encoder_comes_back(packed: Path) -> None:
    model = CLIPTextModelWithProjection.from_pretrained(BASE / "text_encoder_2")
    back = convert_open_clip_checkpoint(model, load_file(packed), prefix=SECOND)
    original = model.state_dict()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key].float(), value.float()) for key, value in original.items())


def test_every_weight_belongs_to_a_part_of_the_original(packed: Path) -> None:
    parts = {".".join(name.split(".")[:3]) for name in load_file(packed)}
    heads = {part.split(".")[0] for part in parts}
    assert heads == {"model", "first_stage_model", "conditioner"}
    assert {"conditioner.embedders.0", "conditioner.embedders.1"} <= parts
