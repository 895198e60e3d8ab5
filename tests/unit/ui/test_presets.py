"""What the page offers to begin with."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.serving.results import ModelSummary
from sdxl_bento.ui import page
from sdxl_bento.ui.choices import nearest_size
from sdxl_bento.ui.form import show_size
from sdxl_bento.ui.presets import IDEAS, SDXL_SIZES, SHAPES, prompts, sizes

SDXL = ModelSummary("sdxl", "sdxl:1", True, 1024, 1024, 8, True, "fp16", "eager", "cuda", 1.0, 1.0)
SMALL = replace(
    SDXL, tag="sdxl-embedded:1", default_width=128, default_height=128, size_multiple=32
)


def test_a_large_model_is_offered_what_sdxl_was_trained_on() -> None:
    assert tuple(sizes(SDXL)) == SDXL_SIZES


def test_a_small_model_is_offered_the_same_shapes() -> None:
    found = sizes(SMALL)
    assert found[0] == (128, 128)
    assert len(found) == len(set(found)) > 3
    assert all(edge % 32 == 0 and edge >= 64 for size in found for edge in size)


def test_no_size_is_under_the_least_that_a_call_may_have() -> None:
    tiny = replace(SMALL, default_width=64, default_height=64)
    assert min(edge for size in sizes(tiny) for edge in size) == 64
    odd = replace(tiny, size_multiple=48)
    assert min(edge for size in sizes(odd)[1:] for edge in size) == 96


def test_a_models_own_size_comes_first() -> None:
    tall = replace(SDXL, default_width=832, default_height=1216)
    assert sizes(tall)[0] == (832, 1216)


def test_prompts_suit_the_model() -> None:
    assert prompts(SMALL) == SHAPES
    assert prompts(SDXL) == IDEAS


@pytest.mark.parametrize(
    ("width", "height", "nearest"),
    [(4000, 3000, "1152 × 896"), (500, 500, "1024 × 1024"), (100, 900, "640 × 1536")],
)
def test_an_upload_gets_the_nearest_shape(width: int, height: int, nearest: str) -> None:
    offered = tuple(show_size(*size) for size in SDXL_SIZES)
    assert nearest_size(offered, width, height) == nearest


def test_gradio_is_left_out_where_it_cannot_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: object())
    caplog.set_level(logging.INFO, "bentoml.sdxl_bento")
    assert page.has_page(Settings())
    assert not page.has_page(Settings(ui=False))
    assert caplog.text == ""
    assert not page.has_page(Settings(workers=2))
    assert "SDXL_WORKERS" in caplog.text
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert not page.has_page(Settings())
