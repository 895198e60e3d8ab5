"""A picture's parameters as AUTOMATIC1111's web interface writes them into its files.

Its page "PNG Info", civitai and most galleries read this text: from the chunk `parameters` of a
PNG, from the EXIF field UserComment of a JPEG or WebP.

The format has no way to quote a prompt. Where a prompt has what readers would take for another
part of the text, one space is added that CLIP's tokenizer ignores, so that the prompt that is read
draws the same picture.
"""

from __future__ import annotations

import json
import re

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

# What begins another part of the text, for some readers within a line too, and an adapter's tag.
_PART = re.compile(r"\b(negative prompt|steps):", re.IGNORECASE)
_TAG = re.compile(r"<(?=[^\W_]\w*:)")


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
    tags = [f"<lora:{_name(lora.name)}:{lora.scale:g}>" for lora in params.loras]
    lines = [" ".join([_plain(params.prompt), *tags])]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {_plain(params.negative_prompt)}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items()))
    return "\n".join(lines)


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


def _plain(prompt: str) -> str:
    """A prompt in which readers find neither another part of the text nor an adapter."""
    # Some readers know only this line break, some all. A null character would end a PNG's text.
    lines = "\n".join(prompt.replace("\0", " ").splitlines())
    return _TAG.sub("< ", _PART.sub(r"\1 :", lines))


def _name(adapter: str) -> str:
    """An adapter's name, which has no quotes either. Names that files have need no change."""
    return re.sub(r"[\s\0<>:]", " ", adapter)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\r\0]', text) else text
