"""What a LoRA file may be, and how it is refused where it is not that."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdxl_bento.diffusion.lora.files import Adapter, Modules, read_adapter
from sdxl_bento.errors import AdapterMismatch, AdapterNotFound
from tests.support import loras
from tests.support.loras import CLIP, CONVOLUTIONS

Targets = dict[str, nn.Module]
EMBEDDED = Path(__file__).parents[3] / "export" / "embedded" / "weights"


@pytest.fixture(scope="module")
def targets() -> Targets:
    return loras.tiny_targets()


def read(path: Path, targets: Targets) -> Adapter:
    return read_adapter("a", path, {name: Modules(module) for name, module in targets.items()})


def refused(path: Path, targets: Targets) -> AdapterMismatch:
    with pytest.raises(AdapterMismatch) as caught:
        read(path, targets)
    return caught.value


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_layers_dtype_and_size(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, clip=CLIP)
    half = {key: tensor.half() for key, tensor in tensors.items()}
    adapter = read(loras.write_peft(tmp_path / "a.safetensors", half), targets)
    assert set(adapter.layers) == set(targets)
    assert sum(len(layers) for layers in adapter.layers.values()) == len(tensors) // 2
    # The layers' own type, not the file's.
    assert {layer.up.dtype for layer in adapter.layers["unet"].values()} == {torch.float32}
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("alpha_of_q", [1.0, 8.0])
def test_alpha_belongs_to_its_layer(targets: Targets, tmp_path: Path, alpha_of_q: float) -> None:
    # diffusers takes the most common alpha for all attention layers of a kohya file.
    kohya = loras.to_kohya(loras.factors(targets), alpha=2.0)
    one = next(key for key in kohya if key.endswith("attn1_to_q.alpha"))
    kohya[one] = torch.tensor(alpha_of_q)
    del kohya[one.replace("to_q", "to_k")]  # none at all: alpha = rank
    layers = read(saved(tmp_path / "a.safetensors", kohya), targets).layers["unet"]
    stem = one.removesuffix("_to_q.alpha")
    for which, scaling in (("q", alpha_of_q / 4), ("k", 1.0), ("v", 0.5)):
        up = kohya[f"{stem}_to_{which}.lora_up.weight"]
        name = next(n for n in layers if n.replace(".", "_") == f"{stem[10:]}_to_{which}")
        assert torch.allclose(layers[name].up, up * scaling)


def test_a_1x1_convolution_may_stand_for_a_linear_layer(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets)
    as_conv = {key: tensor[:, :, None, None] for key, tensor in tensors.items()}
    flat = read(loras.write_peft(tmp_path / "flat.safetensors", tensors), targets)
    conv = read(loras.write_peft(tmp_path / "conv.safetensors", as_conv), targets)
    for name, layer in flat.layers["unet"].items():
        assert torch.equal(conv.layers["unet"][name].down, layer.down)
        assert torch.equal(conv.layers["unet"][name].up, layer.up)


def test_clip_layers_with_and_without_text_model(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, unet="", clip=CLIP)
    bare = {key.replace("text_model.", ""): tensor for key, tensor in tensors.items()}
    one = read(loras.write_peft(tmp_path / "one.safetensors", tensors), targets)
    two = read(loras.write_peft(tmp_path / "two.safetensors", bare), targets)
    assert {t: set(layers) for t, layers in one.layers.items()} == {
        t: set(layers) for t, layers in two.layers.items()
    }


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.diff", "full weight differences"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "third factor"),
        ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "biases"),
        ("unet.conv_in.weight", "not tensors of a LoRA"),
    ],
)
def test_other_kinds_are_refused_by_name(
    targets: Targets, tmp_path: Path, key: str, kind: str
) -> None:
    tensors = loras.factors(targets)
    if key.startswith("lora_unet"):
        tensors = loras.to_kohya(tensors)
    error = refused(saved(tmp_path / "a.safetensors", tensors | {key: torch.ones(2)}), targets)
    assert error.keys == (key,)
    assert kind in str(error)


@pytest.mark.parametrize("kohya", [False, True])
def test_half_a_pair(targets: Targets, tmp_path: Path, kohya: bool) -> None:
    tensors = loras.factors(targets, CONVOLUTIONS)
    tensors = loras.to_kohya(tensors) if kohya else tensors
    lost = next(key for key in tensors if re.search(r"lora_(up|B)", key))
    del tensors[lost]
    error = refused(saved(tmp_path / "a.safetensors", tensors), targets)
    assert error.keys == (lost.replace("lora_up", "lora_down").replace("lora_B", "lora_A"),)


def test_a_lora_of_another_model_names_the_files_keys(targets: Targets, tmp_path: Path) -> None:
    wide = nn.ModuleDict({"conv_in": nn.Conv2d(4, 32, 3)})
    tensors = loras.random_factors("unet", wide, "conv_in")
    tensors |= loras.random_factors("unet", nn.ModuleDict({"nowhere": nn.Linear(2, 2)}), "nowhere")
    error = refused(loras.write_kohya(tmp_path / "a.safetensors", tensors), targets)
    assert set(error.keys) == {key for key in loras.to_kohya(tensors) if "alpha" not in key}
    assert "no such layer" in str(error)
    assert "[4, 4, 3, 3] and [32, 4, 1, 1] do not fit [4, 3, 3] → 16" in str(error)


def test_a_layer_that_is_no_linear_or_convolution(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.random_factors("unet", nn.ModuleDict({"time_proj": nn.Linear(2, 2)}), "time")
    assert "Timesteps" in str(
        refused(loras.write_peft(tmp_path / "a.safetensors", tensors), targets)
    )


def test_no_second_text_encoder_here(targets: Targets, tmp_path: Path) -> None:
    path = loras.write_kohya(tmp_path / "a.safetensors", loras.factors(targets, clip=CLIP))
    error = refused(path, {"unet": targets["unet"], "text_encoder": targets["text_encoder"]})
    assert all(key.startswith("lora_te2_") for key in error.keys)


def test_unreadable_files(targets: Targets, tmp_path: Path) -> None:
    path = loras.write_peft(tmp_path / "a.safetensors", loras.factors(targets))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in str(refused(path, targets))
    path.write_bytes(b"")
    assert "cut short" in str(refused(path, targets))
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in str(refused(path, targets))
    with path.open("wb") as file:
        torch.save({"a": torch.ones(1)}, file)
    assert "pickle" in str(refused(path, targets))
    saved(path, {})
    assert "no tensors" in str(refused(path, targets))
    path.unlink()
    with pytest.raises(AdapterNotFound, match="is gone"):
        read(path, targets)


def test_a_failed_read_leaves_the_model_alone(targets: Targets, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[set[str], list[object]]]:
        return {
            name: (set(module.state_dict()), [vars(m).get("forward") for m in module.modules()])
            for name, module in targets.items()
        }

    before = state()
    tensors = loras.factors(targets)
    tensors["unet.nowhere.lora_A.weight"] = torch.ones(1, 2)
    tensors["unet.nowhere.lora_B.weight"] = torch.ones(2, 1)
    refused(loras.write_peft(tmp_path / "a.safetensors", tensors), targets)
    assert state() == before


@pytest.mark.parametrize("name", ["striped", "outlined"])
def test_the_adapters_that_ship_fit_their_model(name: str) -> None:
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(EMBEDDED / "base" / "unet")
    unet = UNet2DConditionModel.from_config(config)
    adapter = read(EMBEDDED / "loras" / f"{name}.safetensors", {"unet": unet})
    assert adapter.layers["unet"]
