"""The body of a V1 prediction → the native parameters of each instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.bodies import FIELD_HEADERS
from sdxl_bento.protocols.http.validation import parse_params

LISTS = ("instances", "inputs")
# May stand beside the list, and then apply to every instance.
SHARED = ("parameters", *FIELD_HEADERS.values())


def instances_of(body: object, model: str, limit: int) -> list[GenerateParams]:
    """The parameters of the instances of a body, which are at most `limit`.

    `model` is the one in the address. Raises InvalidInput, which names the wrong instance.
    """
    if not isinstance(body, Mapping):
        raise InvalidInput("body", body, 'an object such as {"instances": ["a red circle"]}')
    name = next((name for name in LISTS if name in body), None)
    if name is None:
        return [parse_params(_native_fields(body, {}, model))]
    shared = {key: value for key, value in body.items() if key != name}
    if unknown := [key for key in shared if key not in SHARED]:
        allowed = f"{name} and, for all of them, {', '.join(SHARED)}"
        raise InvalidInput(unknown[0], shared[unknown[0]], allowed)
    items = body[name]
    if not isinstance(items, list) or not 1 <= len(items) <= limit:
        shown = f"{len(items)} items" if isinstance(items, list) else items
        raise InvalidInput(name, shown, f"a list of 1 to {limit} prompts or objects with a prompt")
    common = _native_fields(shared, {}, model)
    return [_instance(item, common, model, f"{name}.{index}") for index, item in enumerate(items)]


def is_single(body: object) -> bool:
    """Whether a body is one prompt without a list, which is answered by the picture itself."""
    return isinstance(body, Mapping) and not any(name in body for name in LISTS)


def _instance(item: object, common: Mapping[str, Any], model: str, place: str) -> GenerateParams:
    """The parameters of the instance at `place`, such as "instances.0", which its errors name."""
    try:
        return parse_params(_native_fields(item, common, model))
    except InvalidInput as error:
        field = place if error.field == "body" else f"{place}.{error.field}"
        raise InvalidInput(field, error.value, error.allowed) from None


def _native_fields(item: object, common: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The native fields of a prompt alone, of a flat object, or of one with `parameters`.

    `parameters` take precedence over the instance's other fields, and these over `common`.
    """
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        raise InvalidInput("body", item, 'an object such as {"prompt": "a red circle"}')
    parameters = item.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise InvalidInput("parameters", parameters, "an object with the fields of a call")
    flat = {key: value for key, value in item.items() if key != "parameters"}
    fields = {**common, **flat, **(parameters or {})}
    if fields.setdefault("model", model) != model:
        raise InvalidInput("model", fields["model"], f"{model}, as the address says, or nothing")
    return fields
