"""A picture's parameters as AUTOMATIC1111's web interface writes them into its files.

Its page "PNG Info", civitai and most galleries read this text: from the chunk `parameters` of a
PNG, from the EXIF field UserComment of a JPEG or WebP.
"""

from __future__ import annotations

import json

from sdxl_bento import __version__
from sdxl_bento.fields import wires
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.describe import describe
from sdxl_bento.sampler_names import a1111_name

# Names that `infotext` writes itself, because their order is fixed or they depend on the task.
_PLACED = frozenset(
    ("Steps", "Sampler", "CFG scale", "Seed", "Model", "Denoising strength", "Refiner switch at")
)


def infotext(order: Resolved) -> str:
    """The text of one picture: its prompt, its negative prompt, and one line of other parameters.

    Adapters are part of the prompt, as that interface writes them. The hashes that it also writes
    are those of single checkpoint files, which a model here does not have; they are left out.
    """
    params = order.params
    sampler, scheduler = a1111_name(params.sampler)
    facts: dict[str, object] = {
        "Steps": params.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": scheduler.capitalize(),
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seed,
        "Size": f"{params.width}x{params.height}",
        "Model": params.model,
    }
    if order.redraws:
        facts["Denoising strength"] = f"{params.strength:g}"
    if params.refiner:
        facts |= {"Refiner": params.model, "Refiner switch at": f"{params.high_noise_frac:g}"}
    facts |= _further_facts(params)
    facts["Version"] = f"sdxl-bento {__version__}"
    tags = [f"<lora:{lora.name}:{lora.scale:g}>" for lora in params.loras]
    lines = [" ".join([params.prompt, *tags])]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items()))
    return "\n".join(lines).replace("\0", " ")  # a null character would end the text of a PNG


def embedded(order: Resolved) -> dict[str, str]:
    """The texts that are written into a picture's file, by the names of a PNG's text chunks.

    `order` has to be for this picture alone. The texts do not depend on when the call was made, so
    the same seed gives the same bytes.
    """
    return {
        "parameters": infotext(order),
        "sdxl-bento": json.dumps(describe(order), ensure_ascii=False),
    }


def _further_facts(params: GenerateParams) -> dict[str, object]:
    """Fields that have a name in this text but no fixed place, unless they hold the default."""
    facts: dict[str, object] = {}
    for name, wire in wires(GenerateParams).items():
        value = getattr(params, name)
        if wire.infotext is None or wire.infotext in _PLACED:
            continue
        if value != GenerateParams.model_fields[name].default:
            facts[wire.infotext] = f"{value:g}" if isinstance(value, float) else value
    return facts


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
