"""What an export makes of the files that are given with --lora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.embedded import WEIGHTS
from export.errors import SourceError
from export.model.inspection import Folder, Pipeline, read_pipeline
from export.model.loras import check_loras, name_loras
from export.model.skeleton import skeleton
from export.source.single_file import CONFIGS
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.original_names import original_name

STRIPED = WEIGHTS / "loras" / "striped.safetensors"
PROJ = "unet.mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return read_pipeline(Folder(WEIGHTS / "base"), "base", None)


def test_names(tmp_path: Path) -> None:
    other, odd = tmp_path / "风格.safetensors", tmp_path / "a=b.SAFETENSORS"
    for path in (other, odd):
        path.write_bytes(STRIPED.read_bytes())
    given = [str(STRIPED), f"My Style={other}", str(odd), STRIPED.with_name("outlined.safetensors")]
    assert list(name_loras(given)) == ["striped", "my-style", "a-b", "outlined"]
    with pytest.raises(SourceError, match=f"--lora name={other}"):
        name_loras([other])
    with pytest.raises(SourceError, match=r"a second LoRA named 'x'(?s:.)*--lora name="):
        name_loras([f"x={STRIPED}", f"X={other}"])
    with pytest.raises(SourceError, match="no such file"):
        name_loras([f"x={tmp_path / 'gone.safetensors'}"])


def test_every_layer_of_sdxl_is_found_by_each_of_its_names() -> None:
    config = json.loads((CONFIGS / "base" / "unet" / "config.json").read_text())
    modules = Modules(skeleton("unet", config))
    attentions = {"0", "1"}  # of three upper blocks
    for name, module in modules.root.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            original = original_name(name, 2, attentions.__contains__)
            for alias in (name, original):
                assert modules.find(alias.replace(".", "_")) == (name, module), alias


def test_sound_ones_pass(model: Pipeline) -> None:
    assert check_loras({"striped": STRIPED}, model) == []
    assert check_loras({}, model) == []


def test_what_has_no_effect_is_told(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(STRIPED) | {"unet.conv_in.diff_b": torch.ones(3)}, path)
    [note] = check_loras({"mine": path}, model)
    assert note == "LoRA mine: 1 tensors have no effect: unet.conv_in.diff_b"


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [
        ({f"{PROJ}.hada_w1_a": torch.ones(1)}, f"{PROJ}.hada_w1_a", "a LoHa"),
        ({f"{PROJ}.lora_A.weight": torch.ones(4, 7), f"{PROJ}.lora_B.weight": torch.ones(7, 4)},
         f"{PROJ}.lora_A.weight", "do not fit"),
        ({f"{PROJ}.alpha": torch.ones(2), f"{PROJ}.lora_A.weight": torch.ones(4, 96),
          f"{PROJ}.lora_B.weight": torch.ones(96, 4)}, f"{PROJ}.alpha", "not one number"),
        ({"unet.conv_in.lora_A.weight": torch.full((1, 4, 3, 3), torch.nan),
          "unet.conv_in.lora_B.weight": torch.ones(48, 1, 1, 1)},
         "unet.conv_in.lora_A.weight", "NaN"),
    ],
)  # fmt: skip
def test_what_the_service_would_refuse_fails(
    model: Pipeline, tmp_path: Path, change: dict[str, Any], key: str, reason: str
) -> None:
    path = tmp_path / "a.safetensors"
    whole = load_file(STRIPED)
    rest = {name: tensor for name, tensor in whole.items() if name.rsplit(".lora_")[0] not in
            {each.rsplit(".lora_")[0] for each in change}}  # fmt: skip
    save_file(rest | change, path)
    with pytest.raises(SourceError) as error:
        check_loras({"a": path}, model)
    assert str(path) in str(error.value)
    assert key in error.value.found
    assert reason in error.value.found


def test_a_broken_header_fails(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(STRIPED), path, metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(SourceError, match="lora_adapter_metadata"):
        check_loras({"a": path}, model)
