"""The elements of Gradio's page and where they stand. What they do is in `events`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sdxl_bento.config import Settings
from sdxl_bento.ui import render
from sdxl_bento.ui.album import Album
from sdxl_bento.ui.form import MAX_LORAS, STRENGTH

# A click on any of its buttons is told to Python with the button's number.
_PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('select', {pick: Number(button.dataset.pick)});
});
"""
OWN_SAMPLER = ("the model's own", "")
HOW = [("Draw over it", "over"), ("Refine it", "refine")]


@dataclass(frozen=True)
class Layout:
    """All elements that events read or write."""

    head: Any
    chips: Any
    prompt: Any
    negative: Any
    draw: Any
    stop: Any
    start_box: Any
    start: Any
    how: Any
    strength: Any
    upload: Any
    clear: Any
    model: Any
    size: Any
    count: Any
    steps: Any
    guidance: Any
    random: Any
    seed: Any
    sampler: Any
    refiner: Any
    loras: Any
    weights: Sequence[Any]
    stage: Any
    notice: Any
    about: Any
    actions: Any
    again: Any
    over: Any
    refine: Any
    gallery: Any
    album: Any
    named: Any
    timer: Any

    @property
    def form(self) -> list[Any]:
        """The elements of `form.Form`, in its order."""
        first = [self.prompt, self.negative, self.model, self.size, self.count, self.steps]
        second = [self.guidance, self.random, self.seed, self.sampler, self.refiner]
        return [*first, *second, self.strength, self.loras, *self.weights]


def build(settings: Settings) -> Layout:
    """Make the elements, inside an open `gr.Blocks`."""
    made: dict[str, Any] = {
        "album": gr.State(Album()),
        "named": gr.State([]),
        "timer": gr.Timer(1.0),
        "head": _html(render.headline((), "loading", "")),
    }
    # A grid of three, so that a narrow page has the picture between the prompt and the settings.
    with gr.Row(elem_id="sb-page"):
        with gr.Column(elem_id="sb-ask"):
            made |= _ask()
        with gr.Column(elem_id="sb-result"):
            made |= _result()
        with gr.Column(elem_id="sb-settings"):
            made |= _settings(settings)
    return Layout(**made)


def _html(value: str, **named: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, **named)


def _slider(low: float, high: float, value: float, step: float, label: str, name: str) -> Any:
    return gr.Slider(
        low, high, value=value, step=step, label=label, buttons=[], min_width=120, elem_id=name
    )


def _ask() -> dict[str, Any]:
    prompt = gr.Textbox(
        label="Prompt",
        lines=3,
        max_lines=8,
        placeholder="What do you want to see?",
        elem_id="sb-prompt",
        autofocus=True,
    )
    chips = _html("", js_on_load=_PICK, elem_id="sb-chips")
    with gr.Group(visible=False, elem_id="sb-start") as start_box:
        start = _html("")
        how = gr.Radio(HOW, value="over", label="From this picture", elem_id="sb-how")
        strength = _slider(0.05, 1, STRENGTH, 0.05, "How much of it may change", "sb-strength")
        clear = gr.Button("Begin without it", size="sm", elem_id="sb-clear")
    with gr.Row(elem_id="sb-go"):
        draw = gr.Button("Draw", variant="primary", size="lg", elem_id="sb-draw")
        stop = gr.Button("Stop", variant="stop", size="lg", visible=False, elem_id="sb-stop")
    return {
        "prompt": prompt,
        "chips": chips,
        "start_box": start_box,
        "start": start,
        "how": how,
        "strength": strength,
        "clear": clear,
        "draw": draw,
        "stop": stop,
    }


def _result() -> dict[str, Any]:
    notice = _html("", elem_id="sb-notice")
    stage = _html(render.invitation(), elem_id="sb-view")
    with gr.Row(visible=False, elem_id="sb-actions") as actions:
        again = gr.Button("Use these again", size="sm", min_width=80, elem_id="sb-again")
        over = gr.Button("Draw over it", size="sm", min_width=80, elem_id="sb-over")
        refine = gr.Button("Refine", size="sm", min_width=80, elem_id="sb-refine")
    about = _html("", elem_id="sb-about")
    gallery = _html("", js_on_load=_PICK, elem_id="sb-gallery")
    return {
        "notice": notice,
        "stage": stage,
        "actions": actions,
        "again": again,
        "over": over,
        "refine": refine,
        "about": about,
        "gallery": gallery,
    }


def _settings(settings: Settings) -> dict[str, Any]:
    negative = gr.Textbox(
        label="Negative prompt",
        lines=1,
        max_lines=4,
        placeholder="What to avoid",
        elem_id="sb-negative",
    )
    model = gr.Dropdown([], label="Model", visible=False, elem_id="sb-model-choice")
    with gr.Row():
        size = gr.Dropdown(
            [],
            label="Size",
            allow_custom_value=True,
            min_width=120,
            elem_id="sb-size",
        )
        count = _slider(1, min(settings.max_images, 8), 1, 1, "Pictures", "sb-count")
    with gr.Row():
        steps = _slider(1, settings.max_steps, 25, 1, "Steps", "sb-steps")
        guidance = _slider(0, 20, 5, 0.1, "Guidance", "sb-guidance")
    with gr.Row():
        random = gr.Checkbox(
            True, label="Random seed", container=False, min_width=120, elem_id="sb-random"
        )
        seed = gr.Textbox(
            label="Seed",
            placeholder="digits",
            max_lines=1,
            visible=False,
            min_width=120,
            elem_id="sb-seed",
        )
    sampler = gr.Dropdown([OWN_SAMPLER], value="", label="Sampler", elem_id="sb-sampler")
    refiner = gr.Checkbox(
        False, label="Let the refiner finish it", visible=False, elem_id="sb-refiner"
    )
    loras = gr.Dropdown(
        [],
        label="LoRAs",
        multiselect=True,
        max_choices=MAX_LORAS,
        visible=False,
        elem_id="sb-loras",
    )
    weights = [
        gr.Slider(-2, 2, value=1, step=0.05, visible=False, buttons=[], elem_id=f"sb-weight-{slot}")
        for slot in range(MAX_LORAS)
    ]
    upload = gr.UploadButton(
        "Begin with a picture of yours …", file_types=["image"], size="sm", elem_id="sb-upload"
    )
    return {
        "negative": negative,
        "model": model,
        "size": size,
        "count": count,
        "steps": steps,
        "guidance": guidance,
        "random": random,
        "seed": seed,
        "sampler": sampler,
        "refiner": refiner,
        "loras": loras,
        "weights": weights,
        "upload": upload,
    }
