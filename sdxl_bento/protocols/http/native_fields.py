"""Native fields as they are sent: under their own names, or under those of other servers.

An alias is a name that other servers have for a field, where it can mean nothing else. Aliases are
part of the fields' `Wire`s in `params`, so the documentation, the OpenAPI document and all
protocols have the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.params import GenerateParams, LoraRef
from sdxl_bento.protocols.http.translation import UNSAID, Translation
from sdxl_bento.sampler_names import SCHEDULER_NAMES

SCHEDULER = "scheduler"  # the alias whose values have other names, too


@cache
def aliases() -> Mapping[str, str]:
    """The names that other servers have for fields → the native names."""
    return {alias: name for name, wire in wires(GenerateParams).items() for alias in wire.aliases}


@cache
def names() -> tuple[str, ...]:
    """All names that a native field may have, the native ones first."""
    return (*GenerateParams.model_fields, *aliases())


def native_fields(
    body: Mapping[str, Any],
    translation: Translation,
    place: str = "",
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """The fields of an object under their native names, which is noted in the translation.

    Args:
        body: the object.
        translation: of the call.
        place: where the object is in the caller's body; empty if it is the body itself.
        more: the names of further fields that the object may have.

    Raises InvalidInput for an unknown field, and for a field that was sent under two names.
    """
    listed = f"one of the fields {', '.join((*GenerateParams.model_fields, *more))}"
    fields: dict[str, Any] = {}
    for name, value in translation.known(body, (*names(), *more), place, listed).items():
        native = aliases().get(name, name)
        at = f"{place}.{name}" if place else name
        if native != name and native in body:
            raise InvalidInput(at, value, f"one of {name} and {native}, not both")
        if native in fields:
            other = next(each for each in body if aliases().get(each) == native)
            raise InvalidInput(at, value, f"one of {name} and {other}, not both")
        fields[native] = _known_loras(value, translation, at) if native == "loras" else value
        if name == SCHEDULER and isinstance(value, str):
            fields[native] = SCHEDULER_NAMES.get(value.lower(), value)
        if native in GenerateParams.model_fields:
            translation.note(native, at, value)
        else:
            translation.note("image_id" if native == "id" else native, at, UNSAID)
    return fields


def _known_loras(loras: Any, translation: Translation, place: str) -> Any:
    """The adapters of a call with the fields that an adapter has."""
    if not isinstance(loras, list):
        return loras
    return [
        translation.known(lora, LoraRef.model_fields, f"{place}.{index}")
        if isinstance(lora, Mapping)
        else lora
        for index, lora in enumerate(loras)
    ]
