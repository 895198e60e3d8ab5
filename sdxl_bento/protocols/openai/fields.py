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
from sdxl_bento.protocols.http.bodies import PICTURE_FIELDS

# Parameters of OpenAI that have no meaning for this server.
IGNORED = frozenset(
    ("user", "safety_identifier", "quality", "style", "background", "moderation", "input_fidelity")
)
# OpenAI's name of a parameter → the native field with the same value, if that has another name.
RENAMED = {wire.openai: name for name, wire in wires(GenerateParams).items() if wire.openai}
OWN = frozenset((*RENAMED, "size", "stream", "partial_images", "response_format"))
MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})\Z")


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a request says about its answer.

    Attributes:
        stream: send events instead of one body.
        partial_images: how many previews of each picture a stream contains.
        as_url: send links instead of files.
        names: native field → the parameter that the caller used for it, for errors.
    """

    stream: bool = False
    partial_images: int = 0
    as_url: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def to_native(body: object, task: Task) -> tuple[object, AnswerOptions]:
    """Translate a body into native fields, and say how to answer. Raises InvalidInput."""
    if not isinstance(body, Mapping):
        return body, AnswerOptions()
    body = {name: value for name, value in body.items() if value is not None}  # null is no value
    _check_known(body, task)
    fields = {name: body[name] for name in body if name not in OWN | IGNORED}
    names: dict[str, str] = {}
    for name, native in RENAMED.items():
        if name in body:
            _put(fields, names, native, name, body[name])
    if body.get("size", "auto") != "auto":
        width, height = _size(body["size"])
        _put(fields, names, "width", "size", width)
        _put(fields, names, "height", "size", height)
        names["width x height"] = "size"
    if "output_quality" in names:
        fields["output_quality"] = _quality(fields)
    if task != "generate" and isinstance(fields.get("image"), list):
        fields["image"] = _only_one(fields["image"])
    return fields, _answer_options(body, names)


def _check_known(body: Mapping[str, Any], task: Task) -> None:
    if "mask" in body:
        allowed = "no mask: it is not supported, the whole picture is redrawn"
        raise InvalidInput("mask", "a picture", allowed)
    known = {
        *OWN,
        *IGNORED,
        *GenerateParams.model_fields,
        *(PICTURE_FIELDS if task != "generate" else ()),
    }
    for name in body:
        if name not in known:
            allowed = f"one of the parameters {', '.join(sorted(known - IGNORED))}"
            raise InvalidInput(name, body[name], allowed)


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
    """OpenAI's compression is a quality from 0 to 100. Its clients send 100 if none was chosen."""
    value = fields["output_quality"]
    if value != 100 and fields.get("output_format", "png") == "png":
        raise InvalidInput("output_compression", value, "100 for png, which loses nothing")
    return 1 if type(value) is int and value == 0 else value


def _only_one(images: list[object]) -> object:
    if len(images) != 1:
        raise InvalidInput("image", f"{len(images)} pictures", "one picture")
    return images[0]


def _answer_options(body: Mapping[str, Any], names: Mapping[str, str]) -> AnswerOptions:
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidInput("stream", stream, "true or false")
    partial = body.get("partial_images", 0)
    if type(partial) is not int or not 0 <= partial <= MAX_PARTIAL_IMAGES:
        allowed = f"an integer from 0 to {MAX_PARTIAL_IMAGES}"
        raise InvalidInput("partial_images", partial, allowed)
    form = body.get("response_format", "b64_json")
    forms = ("b64_json",) if stream else ("b64_json", "url")
    if form not in forms:
        allowed = " or ".join(forms) + (" in a stream" if stream else "")
        raise InvalidInput("response_format", form, allowed)
    return AnswerOptions(stream, partial, form == "url", names)
