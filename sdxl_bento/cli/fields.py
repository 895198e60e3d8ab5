"""Options → the fields of a call. What cannot be parsed is a usage error."""

from __future__ import annotations

import re
from collections.abc import Sequence

import typer

Fields = dict[str, object]


def given(**options: object) -> Fields:
    """The options that were given: what is left out, the model or the server decides."""
    return {name: value for name, value in options.items() if value is not None}


def loras(texts: Sequence[str] | None) -> list[Fields] | None:
    """`["striped=0.8", "outlined"]` as the field `loras` holds them."""
    return [_lora(text) for text in texts] if texts else None


def width_and_height(
    size: str | None, width: int | None, height: int | None
) -> tuple[int | None, int | None]:
    """From `--size`, or from `--width` and `--height`."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise typer.BadParameter("not together with --width and --height", param_hint="--size")
    both = pair(size, "--size", "x")
    assert both is not None
    return both[0], both[1]


def height_and_width(size: str | None, option: str) -> list[int] | None:
    """`"1024x768"` as the micro-conditioning has it: [768, 1024]."""
    both = pair(size, option, "x")
    return both[::-1] if both is not None else None


def pair(text: str | None, option: str, between: str) -> list[int] | None:
    """Two whole numbers."""
    if text is None:
        return None
    found = re.fullmatch(rf"(\d+)\s*{re.escape(between)}\s*(\d+)", text.strip().lower())
    if found is None:
        example = {"x": "1024x768", ",": "0,0"}[between]
        raise typer.BadParameter(f"{text!r} is not two numbers as {example}", param_hint=option)
    return [int(found[1]), int(found[2])]


def numbers(text: str, option: str) -> list[int]:
    """`"1,4,16"`: whole numbers over 0."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not numbers as 1,4,16", param_hint=option)
    return [int(part) for part in parts]


def _lora(text: str) -> Fields:
    name, mark, scale = text.rpartition("=") if "=" in text else text.rpartition(":")
    if not mark:
        return {"name": text}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: what follows the name must be a number, as {name}=0.8", param_hint="--lora"
        ) from None
