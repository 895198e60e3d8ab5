"""Suggestions of the page: sizes that suit a model, prompts to try."""

from __future__ import annotations

from sdxl_bento.serving.results import ModelSummary

# (width, height) that SDXL was trained on, of about a megapixel each: arXiv 2307.01952, appendix I.
SDXL_SIZES = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
)
SHAPES = (
    "a red circle on a blue background",
    "a large yellow star on a purple background",
    "two green squares on a white background",
    "an orange heart on the left on a black background",
)
IDEAS = (
    "a lighthouse at dawn, oil painting",
    "portrait of a fox in a tweed jacket",
    "isometric cutaway of a tiny bakery",
    "snowy mountain village at night, warm windows",
)
_NATIVE = 1024


def sizes(model: ModelSummary) -> list[tuple[int, int]]:
    """Sizes in pixels: the model's own, then SDXL's, scaled to the model's number of pixels."""
    own = (model.default_width, model.default_height)
    edge = (own[0] * own[1]) ** 0.5
    scaled = [
        (_fit(width * edge / _NATIVE, model), _fit(height * edge / _NATIVE, model))
        for width, height in SDXL_SIZES
    ]
    return list(dict.fromkeys((own, *scaled)))


def is_embedded(model: ModelSummary) -> bool:
    """Whether this is the model of this project, which knows only shapes and colours."""
    return model.tag.startswith("sdxl-embedded")


def prompts(model: ModelSummary) -> tuple[str, ...]:
    """Prompts that the model can draw."""
    return SHAPES if is_embedded(model) else IDEAS


def _fit(pixels: float, model: ModelSummary) -> int:
    multiple = model.size_multiple
    return max(round(pixels / multiple), -(-64 // multiple)) * multiple
