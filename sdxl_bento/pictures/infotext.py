"""A picture's parameters as AUTOMATIC1111's web interface writes them into its files.

Its page "PNG Info", civitai and most galleries read this text: from the chunk `parameters` of a
PNG, from the EXIF field UserComment of a JPEG or WebP.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from sdxl_bento import __version__
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.a1111.samplers import name_of

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # tags; EXIF 2.32, 4.6.3 and 4.6.5
_LONG, _UNDEFINED = 4, 7  # types; 4.6.2


def infotext(params: GenerateParams, *, redrawn: bool) -> str:
    """The text: prompt, negative prompt, and one line of facts.

    `params` are one picture's, with every default filled in. `redrawn`: it began as a picture, so
    that `strength` counts. Adapters are in the prompt, as they are there. Hashes are left out:
    those it has are of single checkpoint files.
    """
    sampler, scheduler = name_of(params.sampler)
    facts: dict[str, object] = {
        "Steps": params.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": scheduler.capitalize(),
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seed,
        "Size": f"{params.width}x{params.height}",
        "Model": params.model,
    }
    if redrawn:
        facts["Denoising strength"] = f"{params.strength:g}"
    if params.refiner:
        facts |= {"Refiner": params.model, "Refiner switch at": f"{params.high_noise_frac:g}"}
    facts["Version"] = f"sdxl-bento {__version__}"
    tags = [f"<lora:{lora.name}:{lora.scale:g}>" for lora in params.loras]
    lines = [" ".join([params.prompt, *tags])]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items()))
    return "\n".join(lines).replace("\0", " ")  # which would end a PNG's text


def user_comment(text: str) -> bytes:
    """EXIF data with this one field, in the byte order that its readers take for granted.

    Written by hand, since Pillow gives bytes the type BYTE, where EXIF wants UNDEFINED.
    """
    data = b"UNICODE\0" + text.encode("utf-16-be")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    exif = struct.pack(">HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(data), 44, 0)
    return b"Exif\0\0" + header + first + exif + data


def embedded(
    params: GenerateParams, described: Mapping[str, object], *, redrawn: bool
) -> dict[str, str]:
    """What goes into a picture's file, by the names that a PNG's text chunks have.

    Nothing in it differs from call to call: the same seed gives the same bytes.
    """
    return {
        "parameters": infotext(params, redrawn=redrawn),
        "sdxl-bento": json.dumps(described, ensure_ascii=False),
    }


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
