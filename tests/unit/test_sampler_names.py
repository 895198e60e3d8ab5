"""A new sampler is complete, or a test names the table that lacks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdxl_bento import layout
from sdxl_bento.diffusion.schedules import default_sampler, make_scheduler, scheduler_note
from sdxl_bento.sampler_names import (
    A1111_SAMPLERS,
    A1111_SCHEDULERS,
    NEAREST_OF_CLASS,
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


@pytest.mark.parametrize("name", layout.SCHEDULERS)
def test_every_scheduler_that_an_export_takes_has_its_sampler(name: str) -> None:
    config = {"_class_name": name, "num_train_timesteps": 1000}
    assert (name in SAMPLER_OF_CLASS) != (name in NEAREST_OF_CLASS)
    note = scheduler_note(config)
    assert (f"{name} is no sampler here" in note) == (name in NEAREST_OF_CLASS)
    assert (default_sampler(config) in note) == (name in NEAREST_OF_CLASS)


@pytest.mark.parametrize(
    ("config", "ignored"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
          "solver_order": 2, "use_karras_sigmas": True}, ""),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
         "algorithm_type=dpmsolver"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample=True"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear"}, ""),
    ],
)  # fmt: skip
def test_what_is_not_followed_of_a_scheduler_is_named(
    config: dict[str, object], ignored: str
) -> None:
    note = scheduler_note(config)
    assert bool(note) is bool(ignored)
    assert ignored in note


def test_the_tables_name_no_sampler_that_does_not_exist() -> None:
    named = {ours for schedulers in A1111_SAMPLERS.values() for ours in schedulers.values()}
    assert named | set(SAMPLER_OF_CLASS.values()) == set(SAMPLERS)


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_pages_count_the_samplers_right(page: str) -> None:
    counts = re.findall(r"\b(\w+) samplers\b", (ROOT / page).read_text("utf-8").lower())
    counts = [count for count in counts if count in NUMBERS]
    assert counts and {NUMBERS.index(count) for count in counts} == {len(SAMPLERS)}
