"""Adapters in AUTOMATIC1111's prompts, such as `a red circle <lora:striped:0.8>`.

The rest of its prompt syntax, such as `(word:1.2)`, stays in the prompt as text.
"""

from __future__ import annotations

import math
import re
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import MAX_PROMPT_CHARS

_MOST_CHARS = 2 * MAX_PROMPT_CHARS
_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")


def without_loras(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its tags, and the native `loras` for these. Raises InvalidInput."""
    if len(prompt) > _MOST_CHARS:  # a prompt so long is refused whatever is in it
        return prompt, []
    loras = [_lora(match) for match in _TAG.finditer(prompt)]
    return (_TAG.sub("", prompt).strip() if loras else prompt), loras


def tags_in(prompt: str) -> list[str]:
    """The tags of a prompt as they are written, one for each adapter of `without_loras`."""
    return [] if len(prompt) > _MOST_CHARS else [match[0] for match in _TAG.finditer(prompt)]


def _lora(match: re.Match[str]) -> dict[str, Any]:
    kind, text = match.groups()
    name, *weights = text.split(":")
    scale = _number(weights[0]) if weights else 1.0
    # AUTOMATIC1111 takes a second weight for the UNet alone. Here all parts have the same weight.
    same = all(_number(weight) == scale for weight in weights[1:])
    if kind == "hypernet" or not name or scale is None or not same:
        raise InvalidInput("prompt", match[0], "<lora:name> or <lora:name:weight>")
    return {"name": name, "scale": scale}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
