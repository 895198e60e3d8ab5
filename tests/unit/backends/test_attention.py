"""The attention backend of a UNet: applied, measured, refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from benchmarks.full_size import TINY
from export.compile.attention import pick_attention
from export.model.graphs import unet_example
from sdxl_bento.backends import attention
from sdxl_bento.backends.attention import DispatchedAttention, apply_attention, installed
from sdxl_bento.errors import ConfigurationError

CPU = torch.device("cpu")


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**TINY.unet).eval().requires_grad_(False)


def run(unet: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    added = {name: inputs[name] for name in ("text_embeds", "time_ids")}
    rest = {name: x for name, x in inputs.items() if name not in added}
    with torch.no_grad():
        output: torch.Tensor = unet(**rest, added_cond_kwargs=added, return_dict=False)[0]
    return output


@pytest.mark.parametrize("name", installed(CPU))
def test_an_applied_backend_gives_what_the_unet_gave(unet: Any, name: str) -> None:
    inputs = unet_example("base", unet, rows=2, height=8, width=12)
    wanted = run(unet, inputs)
    apply_attention(unet, name)
    assert all(type(p) is DispatchedAttention for p in unet.attn_processors.values())
    torch.testing.assert_close(run(unet, inputs), wanted, rtol=1e-4, atol=1e-5)


def test_the_choice_is_measured_and_applied(unet: Any) -> None:
    inputs = unet_example("base", unet, rows=1, height=8, width=8)
    choice = pick_attention(unet, inputs, installed(CPU), runs=2)
    assert [figure.name for figure in choice.figures] == installed(CPU)
    assert all(figure.ms and not figure.refused for figure in choice.figures)
    processors = unet.attn_processors.values()
    assert {p._attention_backend for p in processors} == {choice.name}


def test_a_faster_backend_that_differs_does_not_win(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "_native_flash"
    call = DispatchedAttention.__call__

    def skewed(self: Any, attn: Any, hidden_states: torch.Tensor, *args: Any, **kw: Any) -> Any:
        if self._attention_backend == wrong:
            return hidden_states * 3  # quick, and something else
        return call(self, attn, hidden_states, *args, **kw)

    monkeypatch.setattr(DispatchedAttention, "__call__", skewed)
    inputs = unet_example("base", unet, rows=1, height=8, width=8)
    choice = pick_attention(unet, inputs, [wrong], runs=1)
    assert choice.name == "native"
    assert "dB, needed are" in choice.figures[1].refused


def test_a_backend_that_fails_is_passed_over(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.PACKAGES, "sage", None)  # as if installed; the import fails
    inputs = unet_example("base", unet, rows=1, height=8, width=8)
    choice = pick_attention(unet, inputs, ["sage"], runs=1)
    assert choice.name == "native"
    assert choice.figures[1].refused


def test_what_is_not_there_is_named(unet: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs the package sageattention"):
        apply_attention(unet, "sage")
    with pytest.raises(ConfigurationError, match="no attention backend is called 'fast'"):
        apply_attention(unet, "fast")
