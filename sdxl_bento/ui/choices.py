"""What the service offers just now, as the page's elements show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_bento.params import GenerateParams
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.results import LoraSummary, ModelSummary
from sdxl_bento.ui import presets
from sdxl_bento.ui.form import show_size

if TYPE_CHECKING:
    from sdxl_bento.serving.generator import Generator


@dataclass(frozen=True, slots=True)
class Choices:
    """For one model: sizes to pick, adapters that fit, its own defaults, prompts to try."""

    model: ModelSummary
    models: tuple[str, ...]
    sizes: tuple[str, ...]
    samplers: tuple[str, ...]
    loras: tuple[str, ...]
    prompts: tuple[str, ...]
    defaults: GenerateParams


def choices(generator: Generator, name: str | None = None) -> Choices | None:
    """What there is to choose with model `name`, or the default one; None until it is loaded."""
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
    """Of the `sizes` the one whose shape is most like `width` by `height` pixels."""
    shape = width / height

    def unlike(size: str) -> float:
        wide, _, high = size.partition(" × ")
        other = int(wide) / int(high)
        return max(shape, other) / min(shape, other)

    return min(sizes, key=unlike)


def _fitting(loras: list[LoraSummary], model: ModelSummary) -> tuple[str, ...]:
    return tuple(lora.name for lora in loras if model.name in lora.models)
