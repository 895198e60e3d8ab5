"""Gradio's elements for the controls of `controls`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdxl_bento.config import Settings
from sdxl_bento.ui.controls import FieldControl

UNSET = ("the model's own", "")  # of a choice: label and value


def element(control: FieldControl, settings: Settings, **changes: Any) -> Any:
    """The element of a control, inside an open `gr.Blocks`; `changes` are Gradio's arguments."""
    arguments: dict[str, Any] = {"label": control.label, "elem_id": f"sb-{control.name}"}
    arguments |= {"value": control.initial} | changes
    high = control.high
    if control.setting is not None and high is not None:
        high = min(high, getattr(settings, control.setting))
    match control.kind:
        case "slider":
            return slider(control.low, high, control.step, **arguments)
        case "number":
            arguments["precision"] = 0 if control.step == 1 else None
            return gr.Number(minimum=control.low, maximum=high, step=control.step, **arguments)
        case "choice":
            unset = [UNSET] if control.default is None else []
            return gr.Dropdown([*unset, *control.choices], **arguments)
        case "switch":
            return gr.Checkbox(**arguments)
    return gr.Textbox(lines=1, max_lines=4, placeholder=control.placeholder, **arguments)


def slider(low: float | None, high: float | None, step: float | None, **arguments: Any) -> Any:
    """A slider without Gradio's button that resets it."""
    return gr.Slider(low, high, step=step, buttons=[], min_width=120, **arguments)
