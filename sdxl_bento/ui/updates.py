"""What the page is to show, as updates of its elements. Nothing here calls the service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from sdxl_bento.ui import render
from sdxl_bento.ui.album import Album, Start
from sdxl_bento.ui.choices import Choices
from sdxl_bento.ui.elements import UNSET
from sdxl_bento.ui.form import MAX_LORAS, Form
from sdxl_bento.ui.layout import Layout

Updates = dict[Any, Any]
OF_MODEL = ("num_inference_steps", "guidance_scale")  # fields whose default is the model's


def of_model(on: Layout) -> list[Any]:
    """The elements that `offer` updates: those whose choices depend on the model."""
    shown = [on.model, on.size, on.fields["refiner"], on.refine, on.chips, on.loras]
    return [*shown, on.lora_names, *on.weights]


def offer(on: Layout, offered: Choices, form: Form) -> Updates:
    """Show the choices of a model, with the values of `form` chosen.

    If the form has no size, that of the model is chosen.
    """
    refines, size = offered.model.has_refiner, form.size or offered.sizes[0]
    return {
        on.model: gr.Dropdown(
            choices=list(offered.models), value=offered.model.name, visible=len(offered.models) > 1
        ),
        on.size: gr.Dropdown(choices=list(dict.fromkeys((*offered.sizes, size))), value=size),
        on.fields["refiner"]: gr.Checkbox(value=form.controls["refiner"], visible=refines),
        on.refine: gr.Button(visible=refines),
        on.chips: render.chips(offered.prompts),
        on.loras: gr.Dropdown(
            choices=list(offered.loras), value=list(form.loras), visible=bool(offered.loras)
        ),
        **weigh(on, form.loras, form.weights),
    }


def weigh(on: Layout, names: Iterable[str], weights: Sequence[float]) -> Updates:
    """A slider for each adapter that is named, in order."""
    shown = list(names)
    labels = [*shown, *[""] * (MAX_LORAS - len(shown))]
    sliders = {
        element: gr.Slider(label=f"Weight of {label}", value=weight, visible=bool(label))
        for element, label, weight in zip(on.weights, labels, weights, strict=True)
    }
    return {on.lora_names: shown, **sliders}


def first(on: Layout, offered: Choices) -> Updates:
    """The form after a model has been loaded or chosen."""
    return {
        **offer(on, offered, Form()),
        on.fields["sampler"]: gr.Dropdown(choices=[UNSET, *offered.samplers], value=""),
        **{on.fields[name]: getattr(offered.defaults, name) for name in OF_MODEL},
    }


def again(on: Layout, offered: Choices, form: Form) -> Updates:
    """The form with all values of `form`."""
    values = dict(zip(on.form, form.values(), strict=True))
    seed = gr.Textbox(value=form.seed, visible=not form.random)
    return {**values, on.seed: seed, **offer(on, offered, form)}


def beginning(on: Layout, start: Start | None, refines: bool) -> Updates:
    """The picture that the next call starts from, or none."""
    shown = {on.start_box: gr.Group(visible=start is not None), on.start: render.beginning(start)}
    if start is None:
        return shown
    return {**shown, on.task: gr.Radio(value=start.task, visible=refines)}


def pictures(on: Layout, album: Album) -> Updates:
    """The gallery and the chosen picture."""
    return {
        on.stage: render.finished(album),
        on.actions: gr.Row(visible=album.picture is not None),
        on.details: render.details(album.picture),
        on.gallery: render.gallery(album),
    }


def busy(on: Layout) -> Updates:
    """The page when a call has started."""
    return {
        on.notice: "",
        on.draw: gr.Button(visible=False),
        on.stop: gr.Button(visible=True, interactive=True),
        on.actions: gr.Row(visible=False),
    }


def idle(on: Layout, album: Album, notice: Mapping[str, Any] | str = "") -> Updates:
    """The page when a call has ended. `notice` is HTML, or the body of the call's error."""
    html = notice if isinstance(notice, str) else render.failure(notice)
    return {
        **pictures(on, album),
        on.notice: html,
        on.draw: gr.Button(visible=True),
        on.stop: gr.Button(visible=False),
    }
