"""From the options of a command line to the fields of a call.

Text that cannot be parsed is a usage error: typer.BadParameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sdxl_bento.fields import Wire

Fields = dict[str, object]


def parsed(options: Mapping[str, object], wires: Mapping[str, Wire], size: str | None) -> Fields:
    """The fields of a call.

    Args:
        options: what typer has parsed, by the names of the fields; None where it was left out.
        wires: the metadata of these fields.
        size: the text of `--size`, which stands for width and height.

    Raises:
        BadParameter: a text cannot be parsed, or there is `--size` beside width or height.
    """
    fields = {name: _value(name, value, wires[name]) for name, value in options.items()}
    if "width" in fields:
        both = options["width"], options["height"]
        fields["width"], fields["height"] = width_and_height(size, *both)  # type: ignore[arg-type]
    return only_set(**fields)


def option_name(name: str, wire: Wire) -> str:
    """The first name of a field's option: `--original-size`."""
    return (wire.cli or f"--{name.replace('_', '-')}").split()[0]


def only_set(**options: object) -> Fields:
    """The options without those that were left out, which the model or the server decides."""
    return {name: value for name, value in options.items() if value is not None}


def loras(texts: Sequence[str] | None) -> list[Fields] | None:
    """`["striped=0.8", "outlined"]` as the value of the field `loras`."""
    return [_lora(text) for text in texts] if texts else None


def width_and_height(
    size: str | None, width: int | None, height: int | None
) -> tuple[int | None, int | None]:
    """Width and height by `--size`, or by `--width` and `--height`."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise typer.BadParameter("not together with --width and --height", param_hint="--size")
    both = pair(size, "--size", "x")
    assert both is not None
    return both[0], both[1]


def height_and_width(size: str | None, option: str) -> list[int] | None:
    """`"1024x768"` in the order of the micro-conditioning: [768, 1024]."""
    both = pair(size, option, "x")
    return both[::-1] if both is not None else None


def pair(text: str | None, option: str, between: str) -> list[int] | None:
    """Two integers of at least 0, with `between` between them; None for None."""
    if text is None:
        return None
    match = re.fullmatch(rf"(\d+)\s*{re.escape(between)}\s*(\d+)", text.strip().lower())
    if match is None:
        example = {"x": "1024x768", ",": "0,0"}[between]
        raise typer.BadParameter(f"{text!r} is not two numbers as {example}", param_hint=option)
    return [int(match[1]), int(match[2])]


def numbers(text: str, option: str) -> list[int]:
    """`"1,4,16"` as integers, each at least 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not numbers as 1,4,16", param_hint=option)
    return [int(part) for part in parts]


def _value(name: str, value: object, wire: Wire) -> object:
    """An option's value as its field has it."""
    if isinstance(value, list):
        return loras(value)
    if wire.pair is None or not isinstance(value, str):
        return value
    option = option_name(name, wire)
    return height_and_width(value, option) if wire.pair == "WxH" else pair(value, option, ",")


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
