"""8-bit linear layers: what they give, which layers become such, and that they can be traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.export import Dim

from benchmarks.full_size import TINY
from export.embedded import WEIGHTS
from export.likeness import psnr_db
from export.model.graphs import unet_example, unet_graph
from sdxl_bento.backends.quantized import (
    LAYERS,
    QuantizedLinear,
    fits,
    quantize_unet,
    quantize_weight,
)
from sdxl_bento.backends.slots import SlotLayout
from sdxl_bento.manifest import Quantization

KINDS: tuple[Quantization, ...] = tuple(LAYERS)
# Measured figures are in docs/adr/0017-low-bit-layers-of-our-own.md; the thresholds leave some dB
# for other machines.
LEAST_DB = {"int8-weights": 42.0, "int8": 38.0, "fp8": 28.0}


def embedded_unet() -> Any:
    path = WEIGHTS / "base" / "unet"
    unet: Any = diffusers.UNet2DConditionModel
    return unet.from_pretrained(path, torch_dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exact() -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    unet = embedded_unet()
    inputs = unet_example("base", unet, rows=2, height=16, width=16)
    yield inputs, forward(unet, inputs)


def forward(unet: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    graph = unet_graph("base", unet, 16)
    with torch.no_grad():
        output: torch.Tensor = graph.module(**inputs)
    return output


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_numbers_times_scales_are_the_weight(kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    weight[5] = 0
    numbers, scale = quantize_weight(weight, kind)
    assert numbers.element_size() == 1
    assert scale.shape == (32,)
    error = (numbers.float() * scale[:, None] - weight).abs()
    # Half a step of int8; half a step of fp8's three bits of mantissa, or of its least number.
    bound = 0.5 * scale[:, None] if kind == "int8" else weight.abs() / 16 + scale[:, None] / 512
    assert (error <= bound * 1.001).all()
    assert not numbers[5].float().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_close_to_the_one_it_replaces(kind: Quantization, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    layer = LAYERS[kind].of(linear)
    x = torch.randn(2, 19, 64)
    with torch.no_grad():
        assert psnr_db(layer(x), linear(x)) > 30
        assert layer(x.bfloat16()).dtype is torch.bfloat16
    assert layer(torch.zeros(1, 20, 64)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_unet_stays_close(kind: Quantization, exact: Any) -> None:
    inputs, wanted = exact
    unet = embedded_unet()
    layout = SlotLayout(unet).columns
    replaced = quantize_unet(unet, kind)
    assert replaced
    assert psnr_db(forward(unet, inputs), wanted) >= LEAST_DB[kind]
    assert SlotLayout(unet).columns == layout  # adapters find their layers as before


def test_sensitive_layers_are_kept() -> None:
    unet = embedded_unet()
    replaced = set(quantize_unet(unet, "int8"))
    for name, module in unet.named_modules():
        assert isinstance(module, QuantizedLinear) == (name in replaced)
    kept = {name for name, module in unet.named_modules() if type(module) is nn.Linear}
    assert {"time_embedding.linear_1", "add_embedding.linear_2"} <= kept
    assert any(name.endswith("time_emb_proj") for name in kept)
    assert any(name.endswith("attn2.to_k") for name in kept)
    assert all("attn" in name or "ff" in name or "proj_" in name for name in replaced)


def test_sides_that_the_hardware_does_not_take_are_left() -> None:
    assert fits("ff.net.2", nn.Linear(64, 32))
    assert not fits("ff.net.2", nn.Linear(60, 32))
    assert not fits("conv_in", nn.Linear(64, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_layer_can_be_traced_with_any_rows(kind: Quantization) -> None:
    layer = LAYERS[kind].of(nn.Linear(64, 32)).eval()
    rows, tokens = Dim("rows", min=1, max=63), Dim("tokens", min=1, max=4096)
    x = torch.randn(2, 20, 64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows, 1: tokens},)).module()
    for shape in ((1, 1), (63, 17), (2, 64)):
        x = torch.randn(*shape, 64)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.slow
def test_a_quantized_unet_can_be_traced_with_any_rows_and_size() -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**TINY.unet).eval().requires_grad_(False)
    quantize_unet(unet, "int8")
    program = unet_graph("base", unet, 8).trace().module()
    inputs = unet_example("base", unet, rows=3, height=12, width=8)
    torch.testing.assert_close(program(**inputs), forward(unet, inputs), rtol=1e-4, atol=1e-4)
