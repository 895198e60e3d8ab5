"""The parameters of OpenAI's image calls → the native fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.order import Task
from sdxl_bento.params import GenerateParams

# OpenAI has them, and they say nothing that this server could follow.
IGNORED = frozenset(
    ("user", "safety_identifier", "quality", "style", "background", "moderation", "input_fidelity")
)
# OpenAI's name of a parameter → the native field with the same value.
RENAMED = {wire.openai: name for name, wire in wires(GenerateParams).items() if wire.openai}
OWN = frozenset((*RENAMED, "size", "stream", "partial_images", "response_format"))
PICTURE = frozenset(("image", "image_id"))
MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})\Z")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the body says of the answer. `names`: native field → the parameter it was given as."""

    stream: bool = False
    partial_images: int = 0
    as_url: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def translated(body: object, task: Task) -> tuple[object, Wish]:
    """The native fields, and how to answer. Raises InvalidInput."""
    if not isinstance(body, Mapping):
        return body, Wish()
    given = {name: value for name, value in body.items() if value is not None}
    _check_known(given, task)
    fields = {name: given[name] for name in given if name not in OWN | IGNORED}
    names: dict[str, str] = {}
    for name, native in RENAMED.items():
        if name in given:
            _put(fields, names, native, name, given[name])
    if given.get("size", "auto") != "auto":
        width, height = _size(given["size"])
        _put(fields, names, "width", "size", width)
        _put(fields, names, "height", "size", height)
        names["width x height"] = "size"
    if "output_quality" in names:
        fields["output_quality"] = _quality(fields)
    if task != "generate" and isinstance(fields.get("image"), list):
        fields["image"] = _only_one(fields["image"])
    return fields, _wish(given, names)


def _check_known(given: Mapping[str, Any], task: Task) -> None:
    if "mask" in given:
        allowed = "no mask: it is not supported, the whole picture is redrawn"
        raise InvalidInput("mask", "a picture", allowed)
    known = {*OWN, *IGNORED, *GenerateParams.model_fields, *(PICTURE if task != "generate" else ())}
    for name in given:
        if name not in known:
            allowed = f"one of the parameters {', '.join(sorted(known - IGNORED))}"
            raise InvalidInput(name, given[name], allowed)


def _put(
    fields: dict[str, Any], names: dict[str, str], native: str, name: str, value: object
) -> None:
    if native in fields:
        raise InvalidInput(name, value, f"one of {name} and {native}, not both")
    fields[native] = value
    names[native] = name


def _size(value: object) -> tuple[int, int]:
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInput("size", value, "auto, or width and height in pixels, as in 1024x768")
    return int(match[1]), int(match[2])


def _quality(fields: Mapping[str, Any]) -> object:
    """Their compression is a quality from 0 to 100, which is what comes where none is given."""
    value = fields["output_quality"]
    if value != 100 and fields.get("output_format", "png") == "png":
        raise InvalidInput("output_compression", value, "100 for png, which loses nothing")
    return 1 if type(value) is int and value == 0 else value


def _only_one(images: list[object]) -> object:
    if len(images) != 1:
        raise InvalidInput("image", f"{len(images)} pictures", "one picture")
    return images[0]


def _wish(given: Mapping[str, Any], names: Mapping[str, str]) -> Wish:
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidInput("stream", stream, "true or false")
    partial = given.get("partial_images", 0)
    if type(partial) is not int or not 0 <= partial <= MAX_PARTIAL_IMAGES:
        allowed = f"an integer from 0 to {MAX_PARTIAL_IMAGES}"
        raise InvalidInput("partial_images", partial, allowed)
    form = given.get("response_format", "b64_json")
    forms = ("b64_json",) if stream else ("b64_json", "url")
    if form not in forms:
        allowed = " or ".join(forms) + (" in a stream" if stream else "")
        raise InvalidInput("response_format", form, allowed)
    return Wish(stream, partial, form == "url", names)
