"""What the service offers at the moment, in the form that the page's elements show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_bento.params import GenerateParams
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.results import LoraSummary, ModelSummary
from sdxl_bento.ui import presets
from sdxl_bento.ui.form import parse_size, show_size

if TYPE_CHECKING:
    from sdxl_bento.serving.generator import Generator


@dataclass(frozen=True, slots=True)
class Choices:
    """What one model offers: sizes, adapters that fit it, its defaults, prompts to try."""

    model: ModelSummary
    models: tuple[str, ...]
    sizes: tuple[str, ...]
    samplers: tuple[str, ...]
    loras: tuple[str, ...]
    prompts: tuple[str, ...]
    defaults: GenerateParams


def choices(generator: Generator, name: str | None = None) -> Choices | None:
    """The choices with model `name`, or else the default model; None until one is loaded."""
    models = generator.models.summaries() if generator.state == "ready" else []
    if not models:
        return None
    model = next((each for each in models if each.name == name), models[0])
    return Choices(
        model=model,
        models=tuple(each.name for each in models),
        sizes=tuple(show_size(*size) for size in presets.sizes(model)),
        samplers=SAMPLERS,
        loras=_fitting(generator.models.adapters(), model),
        prompts=presets.prompts(model),
        defaults=generator.models.defaults(model.name),
    )


def nearest_size(sizes: tuple[str, ...], width: int, height: int) -> str:
    """The one of `sizes` whose aspect ratio is nearest to that of `width` by `height` pixels."""
    ratio = width / height

    def distance(size: str) -> float:
        other_width, other_height = parse_size(size)
        other = other_width / other_height
        return max(ratio, other) / min(ratio, other)

    return min(sizes, key=distance)


def _fitting(loras: list[LoraSummary], model: ModelSummary) -> tuple[str, ...]:
    return tuple(lora.name for lora in loras if model.name in lora.models)
