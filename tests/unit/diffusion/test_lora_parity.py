"""Rows with adapters against diffusers' `load_lora_weights` and `set_adapters`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from tests.support import loras
from tests.support.loras import CLIP, CONVOLUTIONS, EVERYTHING, mix

Targets = dict[str, nn.Module]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def targets() -> Targets:
    return loras.tiny_targets()


def unet_error(
    targets: Targets, files: dict[str, Path], scales: dict[str, float], rows: int = 3
) -> float:
    inputs = loras.unet_inputs(rows)
    expected = loras.unet_output(loras.diffusers_with(targets, files, scales)["unet"], inputs)
    pool = loras.pool_of(targets, **files)
    got = loras.unet_output(targets["unet"], inputs, pool, [mix(**scales)] * rows)
    base = loras.unet_output(targets["unet"], inputs)
    assert (got - base).abs().max() > 0.01, "the adapter does nothing, so this shows nothing"
    return (got - expected).abs().max().item()


WRITERS = {
    "peft": loras.write_peft,
    "diffusers": loras.write_diffusers,
    "kohya": loras.write_kohya,
    "sgm": loras.write_sgm,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_layer_of_the_unet_in_every_format(
    targets: Targets, tmp_path: Path, writer: Callable[..., Path]
) -> None:
    path = writer(tmp_path / "a.safetensors", loras.factors(targets, EVERYTHING))
    assert unet_error(targets, {"a": path}, {"a": 0.7}) <= TOLERANCE


def test_the_first_diffusers_format_reads_as_the_newest(targets: Targets, tmp_path: Path) -> None:
    # diffusers itself finds nothing in these files any more.
    tensors = loras.factors(targets)
    new = loras.write_peft(tmp_path / "new.safetensors", tensors)
    old = loras.write_processors(tmp_path / "old.safetensors", tensors)
    pool = loras.pool_of(targets, new=new, old=old)
    inputs = loras.unet_inputs(2)
    first, second = (
        loras.unet_output(targets["unet"], inputs, pool, [mix(**{name: 1.0})] * 2)
        for name in ("new", "old")
    )
    assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # diffusers' way
def test_two_adapters_with_scales_and_other_ranks(targets: Targets, tmp_path: Path) -> None:
    a = loras.write_peft(tmp_path / "a.safetensors", loras.factors(targets, ranks=(4,)))
    tensors = loras.factors(targets, EVERYTHING, ranks=(2, 6), seed=5)
    b = loras.write_peft(tmp_path / "b.safetensors", tensors)
    assert unet_error(targets, {"a": a, "b": b}, {"a": 0.8, "b": -0.6}) <= TOLERANCE


def test_convolutions(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, CONVOLUTIONS)
    assert any(t.dim() == 4 and t.shape[-1] == 3 for t in tensors.values())
    path = loras.write_kohya(tmp_path / "a.safetensors", tensors, alpha=2.0)
    assert unet_error(targets, {"a": path}, {"a": 1.3}) <= TOLERANCE


def test_alpha_of_kohya(targets: Targets, tmp_path: Path) -> None:
    path = loras.write_sgm(tmp_path / "a.safetensors", loras.factors(targets), alpha=2.0)
    assert unet_error(targets, {"a": path}, {"a": 1.0}) <= TOLERANCE


def test_alpha_of_pefts_config(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets)
    modules = sorted({key.removeprefix("unet.").split(".lora_")[0] for key in tensors})
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=modules,
        alpha_pattern={"mid_block.*to_q": 12},
        use_rslora=True,
    ).to_dict()
    configs = {"unet": {**config, "target_modules": modules}}
    path = loras.write_diffusers(tmp_path / "a.safetensors", tensors, configs)
    assert unet_error(targets, {"a": path}, {"a": 1.0}) <= TOLERANCE


@pytest.mark.parametrize(
    "writer", [loras.write_diffusers, loras.write_peft, partial(loras.write_kohya, alpha=2.0)]
)
@pytest.mark.parametrize("target", ["text_encoder", "text_encoder_2"])
def test_text_encoders(
    targets: Targets, tmp_path: Path, target: str, writer: Callable[..., Path]
) -> None:
    path = writer(tmp_path / "a.safetensors", loras.factors(targets, clip=CLIP))
    tokens = torch.randint(1, 60, (2, 16), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def encode(module: nn.Module) -> Any:
        return module(tokens, output_hidden_states=True)

    expected = encode(loras.diffusers_with(targets, {"a": path}, {"a": 0.9})[target])
    pool = loras.pool_of(targets, a=path)
    with pool.applied(target, [mix(a=0.9), ()]):
        got = encode(targets[target])
    base = encode(targets[target])
    for mine, theirs, none in zip(
        got.hidden_states[1:], expected.hidden_states[1:], base.hidden_states[1:], strict=True
    ):
        assert (mine[0] - theirs[0]).abs().max() <= TOLERANCE
        assert (mine[0] - none[0]).abs().max() > 0.01
        assert (mine[1] - none[1]).abs().max() <= 1e-6
