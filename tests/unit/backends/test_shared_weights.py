"""Tensors of compiled graphs, made from a component's safetensors."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.compile.targets.inductor import _unfused
from sdxl_bento.backends.quantized import quantize_weight
from sdxl_bento.backends.shared_weights import Recipe, shared
from sdxl_bento.errors import ArtifactMismatch, ConfigurationError

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Two shards, as a large component has them."""
    tensors = {f"attn.to_{letter}.weight": torch.randn(4, 8) for letter in "qkv"}
    tensors["conv.weight"] = torch.randn(4, 8, 3, 3)
    halves = [dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])]
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"model-0000{number}.safetensors")
    return tensors


def test_a_tensor_as_it_is(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    recipe = Recipe(("attn.to_q.weight",), "bfloat16", (4, 8), (8, 1))
    made = shared(tmp_path, CPU).make({"w": recipe})["w"]
    assert made.equal(stored["attn.to_q.weight"].bfloat16())


def test_the_layout_that_the_graph_wants(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    wanted = stored["conv.weight"].contiguous(memory_format=torch.channels_last)
    recipe = Recipe(("conv.weight",), "float32", (4, 8, 3, 3), wanted.stride())
    made = shared(tmp_path, CPU).make({"w": recipe})["w"]
    assert made.stride() == wanted.stride()
    assert made.equal(wanted)


def test_fused_projections(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    keys = _unfused("attn.to_qkv.weight")
    assert keys == tuple(f"attn.to_{letter}.weight" for letter in "qkv")
    assert _unfused("attn.to_kv.weight") == keys[1:]
    assert _unfused("attn.to_out.0.weight") == ("attn.to_out.0.weight",)
    recipe = Recipe(keys, "float32", (12, 8), (8, 1))
    made = shared(tmp_path, CPU).make({"w": recipe})["w"]
    assert made.equal(torch.cat([stored[key] for key in keys]))


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_quantized_ones(
    tmp_path: Path, stored: dict[str, torch.Tensor], kind: str, dtype: str
) -> None:
    numbers, scale = quantize_weight(stored["attn.to_q.weight"], kind)
    made = shared(tmp_path, CPU).make(
        {
            "w": Recipe(("attn.to_q.weight",), dtype, (4, 8), (8, 1), kind),
            "s": Recipe(("attn.to_q.weight",), "float32", (4,), (1,), f"{kind}-scale"),
        }
    )
    assert made["w"].float().equal(numbers.float())
    assert made["s"].equal(scale)


def test_one_set_while_somebody_holds_it(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    recipe = {"w": Recipe(("attn.to_q.weight",), "float32", (4, 8), (8, 1))}
    one, other = shared(tmp_path, CPU), shared(tmp_path / ".", CPU)
    assert one is other
    assert one.make(recipe)["w"] is other.make(recipe)["w"]
    watched = weakref.ref(one)
    del one, other
    assert watched() is None


def test_what_is_missing_or_has_another_shape_is_named(
    tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    def make(folder: Path, recipe: Recipe) -> None:
        shared(folder, CPU).make({"w": recipe})

    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"no \.safetensors file"):
        make(tmp_path / "empty", Recipe(("conv.weight",), "float32", (1,), (1,)))
    with pytest.raises(ConfigurationError, match=r"no tensor 'attn\.to_x"):
        make(tmp_path, Recipe(("attn.to_q.weight", "attn.to_x.weight"), "float32", (1,), (1,)))
    with pytest.raises(ArtifactMismatch, match=r"conv\.weight is \[4, 8, 3, 3\]"):
        make(tmp_path, Recipe(("conv.weight",), "float32", (4, 8, 1, 1), (8, 1, 1, 1)))
