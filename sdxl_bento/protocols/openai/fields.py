"""The parameters of OpenAI's image calls → the native fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.order import Task
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.bodies import PICTURE_FIELDS
from sdxl_bento.protocols.http.native_fields import names, native_fields
from sdxl_bento.protocols.http.translation import Translation

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
    """

    stream: bool = False
    partial_images: int = 0
    as_url: bool = False


def to_native(
    body: object, task: Task, translation: Translation | None = None
) -> tuple[object, AnswerOptions]:
    """Translate a body into native fields, and say how to answer.

    What the caller called the fields is noted in the translation. Raises InvalidInput.
    """
    translation = translation or Translation()
    if not isinstance(body, Mapping):
        return body, AnswerOptions()
    body = {name: value for name, value in body.items() if value is not None}  # null is no value
    body = _known(body, task, translation)
    native = {name: body[name] for name in body if name not in OWN | IGNORED}
    fields = native_fields(native, translation, more=PICTURE_FIELDS)
    for name, field in RENAMED.items():
        if name in body:
            _put(fields, field, name, body[name], body[name], translation)
    if body.get("size", "auto") != "auto":
        for field, side in zip(("width", "height"), _size(body["size"]), strict=True):
            _put(fields, field, "size", side, body["size"], translation)
        translation.note("width x height", "size", body["size"])
    if "output_compression" in body:
        fields["output_quality"] = _quality(fields)
    if task != "generate" and isinstance(fields.get("image"), list):
        fields["image"] = _only_one(fields["image"])
    return fields, _answer_options(body)


def _known(body: Mapping[str, Any], task: Task, translation: Translation) -> dict[str, Any]:
    """The parameters that are known here. Raises InvalidInput for the first that is not."""
    if "mask" in body:
        allowed = "no mask: it is not supported, the whole picture is redrawn"
        raise InvalidInput("mask", "a picture", allowed)
    pictures = PICTURE_FIELDS if task != "generate" else ()
    listed = ", ".join(sorted({*OWN, *GenerateParams.model_fields, *pictures}))
    return translation.known(
        body, {*OWN, *IGNORED, *names(), *pictures}, allowed=f"one of the parameters {listed}"
    )


def _put(
    fields: dict[str, Any],
    native: str,
    name: str,
    value: object,
    sent: object,
    translation: Translation,
) -> None:
    """Set a native field to what the parameter `name` was sent for."""
    if native in fields:
        other = translation.name(native)
        raise InvalidInput(name, sent, f"one of {name} and {other}, not both")
    fields[native] = value
    translation.note(native, name, sent)


def _size(value: object) -> tuple[int, int]:
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        allowed = "auto, or width and height in pixels, as in 1024x768"
        raise InvalidInput("size", value, allowed)
    return int(match[1]), int(match[2])


def _quality(fields: Mapping[str, Any]) -> object:
    """OpenAI's compression is a quality from 0 to 100. Its clients send 100 if none was chosen."""
    value = fields["output_quality"]
    if type(value) is int and not 0 <= value <= 100:
        raise InvalidInput("output_compression", value, "an integer from 0 to 100")
    if value != 100 and fields.get("output_format", "png") == "png":
        raise InvalidInput("output_compression", value, "100 for png, which loses nothing")
    return 1 if type(value) is int and value == 0 else value


def _only_one(images: list[object]) -> object:
    if len(images) != 1:
        raise InvalidInput("image", f"{len(images)} pictures", "one picture")
    return images[0]


def _answer_options(body: Mapping[str, Any]) -> AnswerOptions:
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
    return AnswerOptions(stream, partial, form == "url")
