"""The look of Gradio's page: fonts of the system, light or dark as the system is set."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors

_RUST = colors.Color(
    name="rust",
    c50="#fdf4f0",
    c100="#fbe6dd",
    c200="#f7cdbc",
    c300="#f2ab8f",
    c400="#f0855c",
    c500="#d95f33",
    c600="#b3441e",
    c700="#933718",
    c800="#742c15",
    c900="#5c2412",
    c950="#32120a",
)


def theme() -> gr.themes.Base:
    """The theme. Its fonts are plain names, so Gradio fetches none of them."""
    base = gr.themes.Default(
        primary_hue=_RUST,
        secondary_hue=_RUST,
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return base.set(
        body_text_color_subdued="*neutral_500",  # the default is too pale to read well
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_600",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )
