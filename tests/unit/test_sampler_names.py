"""A new sampler is complete, or a test names the table that lacks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdxl_bento.diffusion.schedules import make_scheduler
from sdxl_bento.sampler_names import (
    A1111_SAMPLERS,
    A1111_SCHEDULERS,
    SAMPLER_OF_CLASS,
    SAMPLERS,
    a1111_name,
)

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
# A model whose scheduler is of one of these classes is drawn with the class's plain sampler.
VARIANTS = {sampler for sampler in SAMPLERS if sampler.startswith("dpmpp_2m_")}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_a_name_in_automatic1111(sampler: str) -> None:
    name, scheduler = a1111_name(sampler)
    assert A1111_SAMPLERS[name][scheduler] == sampler
    assert scheduler in A1111_SCHEDULERS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_schedulers_class_stands_for_a_sampler(sampler: str) -> None:
    name = type(make_scheduler(sampler, {"num_train_timesteps": 1000})).__name__
    assert name in SAMPLER_OF_CLASS, f"a model whose scheduler is {name} would be drawn with Euler"
    assert SAMPLER_OF_CLASS[name] == sampler or sampler in VARIANTS


def test_the_tables_name_no_sampler_that_does_not_exist() -> None:
    named = {ours for schedulers in A1111_SAMPLERS.values() for ours in schedulers.values()}
    assert named | set(SAMPLER_OF_CLASS.values()) == set(SAMPLERS)


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_pages_count_the_samplers_right(page: str) -> None:
    counts = re.findall(r"\b(\w+) samplers\b", (ROOT / page).read_text("utf-8").lower())
    counts = [count for count in counts if count in NUMBERS]
    assert counts and {NUMBERS.index(count) for count in counts} == {len(SAMPLERS)}
