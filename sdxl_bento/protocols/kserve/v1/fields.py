"""The body of a V1 prediction → the native parameters of each instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.bodies import FIELD_HEADERS
from sdxl_bento.protocols.http.native_fields import native_fields
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.http.validation import parse_params

LISTS = ("instances", "inputs")
# May stand beside the list, and then apply to every instance.
SHARED = ("parameters", *FIELD_HEADERS.values())


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a body: its parameters, and where they are in the body."""

    params: GenerateParams
    translation: Translation


def instances_of(
    body: object, model: str, limit: int, translation: Translation | None = None
) -> list[Instance]:
    """The instances of a body, which are at most `limit`.

    Args:
        body: the decoded body.
        model: the one in the address.
        limit: the most instances.
        translation: of the call.

    Raises InvalidInput, which names the wrong instance.
    """
    whole = translation or Translation()
    if not isinstance(body, Mapping):
        raise InvalidInput("body", body, 'an object such as {"instances": ["a red circle"]}')
    name = list_of(body)
    if name is None:
        return [_instance(body, {}, model, whole.part())]
    allowed = f"{name} and, for all of them, {', '.join(SHARED)}"
    body = whole.known(body, (name, *SHARED), allowed=allowed)
    shared = {key: value for key, value in body.items() if key != name}
    items = body[name]
    if not isinstance(items, list) or not 1 <= len(items) <= limit:
        shown = f"{len(items)} items" if isinstance(items, list) else items
        raise InvalidInput(name, shown, f"a list of 1 to {limit} prompts or objects with a prompt")
    common = _native_fields(shared, model, whole)
    return [
        _instance(item, common, model, whole.part(f"{name}.{index}"))
        for index, item in enumerate(items)
    ]


def list_of(body: object) -> str | None:
    """The name of a body's list of instances, or None if it is one prompt without a list."""
    if not isinstance(body, Mapping):
        return None
    return next((name for name in LISTS if name in body), None)


def is_single(body: object) -> bool:
    """Whether a body is one prompt without a list, which is answered by the picture itself."""
    return isinstance(body, Mapping) and list_of(body) is None


def _instance(
    item: object, common: Mapping[str, Any], model: str, translation: Translation
) -> Instance:
    """The instance at the place that the translation names. `common` are fields for all."""
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        place = translation.place or "body"
        raise InvalidInput(place, item, 'an object such as {"prompt": "a red circle"}')
    fields = {**common, **_native_fields(item, model, translation)}
    fields["model"] = model
    try:
        return Instance(parse_params(fields, translation.rules), translation)
    except InvalidInput as error:
        raise translation.told(error) from None


def _native_fields(item: Mapping[str, Any], model: str, translation: Translation) -> dict[str, Any]:
    """The native fields of a flat object, of one with `parameters`, or of both.

    `parameters` take precedence over the other fields.
    """
    place = translation.place
    inside = f"{place}.parameters" if place else "parameters"
    parameters = item.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise InvalidInput(inside, parameters, "an object with the fields of a call")
    flat = {key: value for key, value in item.items() if key != "parameters"}
    fields: dict[str, Any] = {}
    for values, at in ((flat, place), (parameters or {}, inside)):
        fields |= native_fields(values, translation, at)
        if fields.get("model", model) != model:
            allowed = f"{model}, as the address says, or nothing"
            raise InvalidInput(translation.name("model"), fields["model"], allowed)
    return fields
