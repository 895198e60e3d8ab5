"""The parameters that a picture depends on, as the body of a call that draws it again."""

from __future__ import annotations

from typing import Any

from sdxl_bento.order import Resolved, Task
from sdxl_bento.pictures.describe import describe
from tests.support.loaded_models import loaded, resolved

OPTIONAL = {
    "strength", "high_noise_frac", "aesthetic_score", "negative_aesthetic_score", "lora_late_ok",
    "output_quality", "slo_ms", "priority", "degrade_min_steps",
}  # fmt: skip


def described(task: Task = "generate", **params: Any) -> dict[str, Any]:
    return describe(Resolved(task, resolved(loaded(refiner=True), **params).params))


def optional(task: Task = "generate", **params: Any) -> set[str]:
    return OPTIONAL & described(task, **params).keys()


def test_what_cannot_matter_is_left_out() -> None:
    deadline = {"slo_ms": 9, "degrade_min_steps": 2, "priority": 3}
    assert optional(**deadline, lora_late_ok=True) == set()


def test_each_option_is_there_where_it_matters() -> None:
    scores = {"aesthetic_score", "negative_aesthetic_score"}
    assert optional("img2img") == {"strength"}
    assert optional("refine") == {"strength"} | scores
    assert optional(refiner=True) == {"high_noise_frac"} | scores
    assert optional("img2img", refiner=True) == {"strength", "high_noise_frac"} | scores
    assert optional(output_format="jpeg") == {"output_quality"}
    assert optional(lora_late_ok=True, loras=[{"name": "a"}]) == {"lora_late_ok"}
    assert optional(loras=[{"name": "a"}]) == set()


def test_adapters_are_in_one_order() -> None:
    loras = [{"name": "b", "scale": 0.5}, {"name": "a"}]
    assert described(loras=loras)["loras"] == [
        {"name": "a", "scale": 1.0}, {"name": "b", "scale": 0.5},
    ]  # fmt: skip


def test_a_call_that_draws_it_again() -> None:
    body = described("img2img", negative_prompt="", original_size=(64, 32))
    assert (body["prompt"], body["negative_prompt"]) == ("a red circle", "")
    assert body["original_size"] == [64, 32]  # as JSON has it
    assert "prompt_2" not in body
    assert (body["model"], body["seed"], body["sampler"]) == ("tiny", 5, "euler")
    again = {name: value for name, value in body.items() if name != "model"}
    assert described("img2img", **again) == body
