"""Rows with their own adapters, against the plain formula, one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.diffusion.lora.layers import Composition, Mix, Mixed
from sdxl_bento.errors import RequestFailed
from tests.support.loras import mix

LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(6, 5),
    "no_bias": nn.Linear(6, 5, bias=False),
    "conv3": nn.Conv2d(3, 4, 3, padding=1),
    "conv1": nn.Conv2d(3, 4, 1),
    "strided": nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2)),
    "dilated": nn.Conv2d(3, 4, 3, dilation=2, padding=2),
}
SHAPES = {"linear": (7, 6), "no_bias": (6,)}
RANKS = {"a": 2, "b": 3, "c": 1}


def model() -> nn.Module:
    return nn.ModuleDict(LAYERS).requires_grad_(False)


def low_rank(layer: nn.Module, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    shape = layer.weight.shape
    assert isinstance(shape, torch.Size)
    return LowRank(
        torch.randn(rank, *shape[1:], generator=generator),
        torch.randn(shape[0], rank, generator=generator),
    )


def adapters(layers: Mapping[str, nn.Module] = LAYERS) -> dict[str, dict[str, LowRank]]:
    """Three adapters; "c" has nothing for "conv1"."""
    return {
        name: {
            key: low_rank(layer, rank, seed)
            for seed, (key, layer) in enumerate(layers.items(), start=10 * rank)
            if (name, key) != ("c", "conv1")
        }
        for name, rank in RANKS.items()
    }


def compose(network: nn.Module, loaded: Any, rows: Sequence[Mix]) -> Composition:
    return Composition(Modules(network), {mixed: Mixed(loaded, mixed) for mixed in rows}, rows)


def input_of(name: str, rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = SHAPES.get(name, (3, 8, 8))
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows)).to(dtype)


def by_formula(
    layer: nn.Module, x: torch.Tensor, rows: Sequence[Mix], loaded: Any, name: str
) -> torch.Tensor:
    """Each row alone through `W + sum of scale * up @ down`, in float64."""
    outputs = []
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    for i, mixed in enumerate(rows):
        merged = weight.double()
        for adapter, scale in mixed:
            if name in loaded[adapter]:
                part = loaded[adapter][name]
                product = part.up.double() @ part.down.double().flatten(1)
                merged = merged + scale * product.view_as(merged)
        row = x[i : i + 1].double()
        bias = layer.bias.double() if isinstance(layer.bias, torch.Tensor) else None
        if isinstance(layer, nn.Conv2d):
            settings = layer.stride, layer.padding, layer.dilation
            outputs.append(F.conv2d(row, merged, bias, *settings))  # type: ignore[arg-type]
        else:
            outputs.append(F.linear(row, merged, bias))
    return torch.cat(outputs)


A, B, BOTH, NEGATIVE = mix(a=1.0), mix(b=0.5), mix(a=0.3, b=2.0, c=1.0), mix(c=-1.5)
BATCHES: dict[str, list[Mix]] = {
    "one row": [A],
    "one mix": [A, A, A, A],
    "pairs": [A, A, B, B, BOTH, BOTH],
    "base at both ends": [(), A, A, B, (), ()],
    "base at both ends alike": [(), A, A, ()],
    "a gap": [A, A, (), (), B, B],
    "all different": [A, B, BOTH, NEGATIVE],
    "taking turns": [A, B, A, B],
}


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", LAYERS)
def test_each_row_gets_its_own(name: str, rows: list[Mix]) -> None:
    network, loaded = model(), adapters()
    x = input_of(name, len(rows))
    composition = compose(network, loaded, rows)
    with composition.active():
        got = LAYERS[name](x)
        again = LAYERS[name](x)
    expected = by_formula(LAYERS[name], x, rows, loaded, name)
    assert (got - expected).abs().max() < 1e-4
    assert torch.equal(got, again)


MIXES = st.sampled_from([(), A, B, BOTH, NEGATIVE])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(MIXES, min_size=1, max_size=9), data=st.data())
def test_a_row_does_not_depend_on_its_batch(rows: list[Mix], data: st.DataObject) -> None:
    mine = data.draw(st.integers(0, len(rows) - 1))
    network, loaded = model(), adapters()
    for name in ("linear", "conv3"):
        x = input_of(name, len(rows))
        with compose(network, loaded, rows).active():
            together = LAYERS[name](x)[mine]
        with compose(network, loaded, [rows[mine]]).active():
            alone = LAYERS[name](x[mine : mine + 1])[0]
        assert (together - alone).abs().max() < 2e-5


def test_a_mix_is_made_once_for_all_its_batches() -> None:
    network, loaded = model(), adapters()
    mixes = {mixed: Mixed(loaded, mixed) for mixed in (A, B, BOTH)}
    made = []
    for rows in ([A, B], [B, A, A]):
        with Composition(Modules(network), mixes, rows).active():
            LAYERS["linear"](input_of("linear", len(rows)))
        made.append(mixes[B].layers["linear"]._factors)
    assert made[0] is made[1]
    # A larger rank in the batch widens it, to the same effect.
    with Composition(Modules(network), mixes, [B, BOTH]).active():
        wide = LAYERS["linear"](input_of("linear", 2))
    expected = by_formula(LAYERS["linear"], input_of("linear", 2), [B, BOTH], loaded, "linear")
    assert (wide - expected).abs().max() < 1e-4


def test_nothing_is_left_behind_after_an_error() -> None:
    network, layer = model(), LAYERS["linear"]
    x = input_of("linear", 2)
    before = layer(x)
    with (
        pytest.raises(ZeroDivisionError),
        compose(network, adapters(), [A, B]).active(),
    ):
        raise ZeroDivisionError
    assert torch.equal(layer(x), before)
    assert "forward" not in vars(layer)


def test_a_batch_of_another_size_is_refused() -> None:
    network = model()
    with (
        compose(network, adapters(), [A, B]).active(),
        pytest.raises(RequestFailed, match="3 rows"),
    ):
        LAYERS["linear"](input_of("linear", 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers(dtype: torch.dtype) -> None:
    layers = {"linear": nn.Linear(6, 5).to(dtype), "conv3": nn.Conv2d(3, 4, 3, padding=1).to(dtype)}
    network = nn.ModuleDict(layers).requires_grad_(False)
    loaded = adapters(layers)
    for name, layer in layers.items():
        x = input_of(name, 4, dtype)
        rows = [A, B, (), BOTH]
        with compose(network, loaded, rows).active():
            got = layer(x)
        expected = by_formula(layer, x, rows, loaded, name)
        assert got.dtype is dtype
        assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_in_bfloat16_a_row_is_the_same_beside_any_others() -> None:
    """To the bit, for a difference in one layer's last bit is a level or more of the picture."""
    layers = {"conv3": nn.Conv2d(128, 64, 3, padding=1).to(torch.bfloat16)}
    network = nn.ModuleDict(layers).requires_grad_(False)
    loaded = adapters(layers)
    rows = [A, A, BOTH, (), NEGATIVE, BOTH]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(6, 128, 16, 16, generator=generator).bfloat16()
        with compose(network, loaded, rows).active():
            together = layers["conv3"](x)
        for i, mixed in enumerate(rows):
            with compose(network, loaded, [mixed]).active():
                assert torch.equal(layers["conv3"](x[i : i + 1])[0], together[i]), (seed, i)


def test_channels_last() -> None:
    network, layer = model(), LAYERS["conv3"]
    x = input_of("conv3", 4)
    rows = [A, A, B, ()]
    composition = compose(network, adapters(), rows)
    with composition.active():
        plain = layer(x)
        layer.to(memory_format=torch.channels_last)
        last = layer(x.to(memory_format=torch.channels_last))
    layer.to(memory_format=torch.contiguous_format)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert (plain - last).abs().max() < 1e-5


def test_a_forward_that_was_set_on_the_layer_runs_and_stays() -> None:
    """Offload sets one on each layer, to move its weights."""
    layer = nn.Linear(6, 5).requires_grad_(False)
    network, called = nn.ModuleDict({"linear": layer}), []
    loaded = {"a": {"linear": low_rank(layer, 2, 0)}}

    def moving(x: torch.Tensor) -> torch.Tensor:
        called.append(len(x))
        return F.linear(x, layer.weight, layer.bias)

    layer.forward = moving  # type: ignore[method-assign,assignment]
    x = input_of("linear", 2)
    with compose(network, loaded, [A, A]).active():
        given = layer(x)
    assert called == [2]
    assert (given - by_formula(layer, x, [A, A], loaded, "linear")).abs().max() < 1e-4
    assert layer.forward is moving
