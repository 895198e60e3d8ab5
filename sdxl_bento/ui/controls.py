"""The controls that follow from the definitions of the fields: one element for one field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from sdxl_bento.fields import (
    IMAGE_TO_IMAGE,
    Control,
    Group,
    Kind,
    bounds,
    choices,
    plain_type,
    wire_of,
)
from sdxl_bento.params import GenerateParams

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from sdxl_bento.fields import Wire

_EMPTY: Mapping[Kind, Any] = {"text": "", "choice": "", "switch": False}


@dataclass(frozen=True, slots=True)
class FieldControl:
    """A field's `Control` with nothing left to decide.

    `default` is the field's own, `initial` what the page offers first. `low`, `high` and `step` are
    a slider's or a number's; `choices` are those of a choice, which may be empty if `default` is
    None. `setting` names the setting that is another upper bound.
    """

    kind: Kind
    name: str
    label: str
    group: Group
    default: Any
    initial: Any
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    placeholder: str = ""
    setting: str | None = None

    @property
    def with_picture(self) -> bool:
        """Whether the field means something only to a call that starts from a picture."""
        return self.group == IMAGE_TO_IMAGE

    def to_field(self, shown: Any) -> Any:
        """The field's value for what the element shows; None leaves the field out of a call."""
        if self.kind == "switch":
            return None if shown == self.default else shown
        return None if shown == "" else shown

    def to_shown(self, value: Any) -> Any:
        """What the element shows for a field's value; the inverse of `to_field`."""
        return _EMPTY.get(self.kind) if value is None else value


def field_controls(model: type[BaseModel]) -> dict[str, FieldControl]:
    """The controls of a model's fields, by the fields' names and in their order.

    Fields without a control are left out, and so are those that the page has its own elements for.

    Raises:
        TypeError: a field has a control, but a type that no control can hold.
    """
    found = {}
    for name, field in model.model_fields.items():
        wire = wire_of(name, field)
        if wire.control is not None and wire.control.kind != "own":
            found[name] = _field_control(name, field, wire, wire.control)
    return found


def _field_control(name: str, field: FieldInfo, wire: Wire, control: Control) -> FieldControl:
    kind = control.kind or _kind(name, field)
    default = None if field.default is PydanticUndefined else field.default
    low, high = bounds(field)
    low = low if control.low is None else control.low
    high = high if control.high is None else control.high
    first = default if control.initial is None else control.initial
    return FieldControl(
        kind=kind,
        name=control.name or name,
        label=control.label or wire.label,
        group=wire.group,
        default=default,
        initial=_EMPTY.get(kind) if first is None else first,
        low=low,
        high=high,
        step=control.step or _step(field, low, high),
        choices=choices(field.annotation),
        placeholder=control.placeholder,
        setting=wire.setting,
    )


def _kind(name: str, field: FieldInfo) -> Kind:
    """The control that fits a field's type: a slider only where it has two ends and a start."""
    plain = plain_type(field.annotation)
    if plain in (int, float):
        slides = None not in (*bounds(field), field.default)
        return "slider" if slides else "number"
    if choices(plain):
        return "choice"
    simple: Mapping[Any, Kind] = {str: "text", bool: "switch"}
    if plain in simple:
        return simple[plain]
    raise TypeError(
        f"the field {name} has the type {field.annotation}, which no control can hold: give its "
        'Wire control=None, or Control("own") and the page an element for it'
    )


def _step(field: FieldInfo, low: float | None, high: float | None) -> float:
    if plain_type(field.annotation) is int:
        return 1
    return 0.01 if low is None or high is None else (high - low) / 100


CONTROLS = field_controls(GenerateParams)
