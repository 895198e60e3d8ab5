"""The elements of Gradio's page and their arrangement. Their handlers are in `events`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sdxl_bento.config import Settings
from sdxl_bento.order import Task
from sdxl_bento.ui import render
from sdxl_bento.ui.album import Album
from sdxl_bento.ui.controls import CONTROLS
from sdxl_bento.ui.elements import element, slider
from sdxl_bento.ui.form import MAX_LORAS

# A click on one of the element's buttons becomes an event that carries the button's number.
_PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('select', {pick: Number(button.dataset.pick)});
});
"""
TASKS: list[tuple[str, Task]] = [("Draw over it", "img2img"), ("Refine it", "refine")]


@dataclass(frozen=True)
class Layout:
    """All elements that events read or write.

    `fields` are the elements of `CONTROLS`, by field. `lora_names` is the list of the adapters that
    the sliders in `weights` belong to.
    """

    head: Any
    chips: Any
    prompt: Any
    fields: Mapping[str, Any]
    draw: Any
    stop: Any
    start_box: Any
    start: Any
    task: Any
    upload: Any
    clear: Any
    model: Any
    size: Any
    random: Any
    seed: Any
    loras: Any
    weights: Sequence[Any]
    stage: Any
    notice: Any
    details: Any
    actions: Any
    again: Any
    over: Any
    refine: Any
    gallery: Any
    album: Any
    lora_names: Any
    timer: Any

    @property
    def form(self) -> list[Any]:
        """The elements of `form.Form`, in its order."""
        own = [self.prompt, self.model, self.size, self.random, self.seed]
        return [*own, *(self.fields[name] for name in CONTROLS), self.loras, *self.weights]


def build(settings: Settings) -> Layout:
    """Build the elements, inside an open `gr.Blocks`."""
    fields: dict[str, Any] = {}
    elements: dict[str, Any] = {
        "fields": fields,
        "album": gr.State(Album()),
        "lora_names": gr.State([]),
        "timer": gr.Timer(1.0),
        "head": _html(render.headline((), "loading", "")),
    }
    # A grid of three, so that a narrow page has the picture between the prompt and the settings.
    with gr.Row(elem_id="sb-page"):
        with gr.Column(elem_id="sb-ask"):
            elements |= _ask(settings, fields)
        with gr.Column(elem_id="sb-result"):
            elements |= _result()
        with gr.Column(elem_id="sb-settings"):
            elements |= _settings(settings, fields)
    return Layout(**elements)


def _html(value: str, **named: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, **named)


def _add(fields: dict[str, Any], settings: Settings, *names: str, **changes: Any) -> None:
    """Build the elements of fields here, and put them into `fields`."""
    for name in names:
        fields[name] = element(CONTROLS[name], settings, **changes)


def _rest(fields: Mapping[str, Any], *, with_picture: bool) -> list[str]:
    """The fields whose elements have not been given a place."""
    return [
        name
        for name, control in CONTROLS.items()
        if name not in fields and control.with_picture == with_picture
    ]


def _ask(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
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
        task = gr.Radio(TASKS, value="img2img", label="From this picture", elem_id="sb-how")
        _add(fields, settings, *_rest(fields, with_picture=True))
        clear = gr.Button("Remove this picture", size="sm", elem_id="sb-clear")
    with gr.Row(elem_id="sb-go"):
        draw = gr.Button("Draw", variant="primary", size="lg", elem_id="sb-draw")
        stop = gr.Button("Stop", variant="stop", size="lg", visible=False, elem_id="sb-stop")
    return {
        "prompt": prompt,
        "chips": chips,
        "start_box": start_box,
        "start": start,
        "task": task,
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
    details = _html("", elem_id="sb-about")
    gallery = _html("", js_on_load=_PICK, elem_id="sb-gallery")
    return {
        "notice": notice,
        "stage": stage,
        "actions": actions,
        "again": again,
        "over": over,
        "refine": refine,
        "details": details,
        "gallery": gallery,
    }


def _settings(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    _add(fields, settings, "negative_prompt")
    model = gr.Dropdown([], label="Model", visible=False, elem_id="sb-model-choice")
    with gr.Row():
        size = gr.Dropdown(
            [],
            label="Size",
            allow_custom_value=True,
            min_width=120,
            elem_id="sb-size",
        )
        _add(fields, settings, "num_images")
    with gr.Row():
        _add(fields, settings, "num_inference_steps", "guidance_scale")
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
    _add(fields, settings, "sampler")
    _add(fields, settings, "refiner", visible=False)
    _add(fields, settings, *_rest(fields, with_picture=False))
    loras = gr.Dropdown(
        [],
        label="LoRAs",
        multiselect=True,
        max_choices=MAX_LORAS,
        visible=False,
        elem_id="sb-loras",
    )
    weights = [
        slider(-2, 2, 0.05, value=1, visible=False, elem_id=f"sb-weight-{slot}")
        for slot in range(MAX_LORAS)
    ]
    upload = gr.UploadButton(
        "Start from a picture of yours …", file_types=["image"], size="sm", elem_id="sb-upload"
    )
    return {
        "model": model,
        "size": size,
        "random": random,
        "seed": seed,
        "loras": loras,
        "weights": weights,
        "upload": upload,
    }
