"""How a request's field appears outside the service: as a command line's option, as a control of
the page, under its name in another protocol.

A field of `GenerateParams` declares this in its annotation, beside its type:

    eta: Annotated[float, Wire("Eta", group="Picture")] = Field(
        0.0, ge=0.0, le=1.0, description="Noise that DDIM adds at each step."
    )

Every attribute of a `Wire` may be left out, and so may the `Wire` itself. Names, help, type and
bounds then come from the field's own name, description, annotation and bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# The fields of a group are shown together, on the command line and on the page, in this order.
Group = Literal[
    "Prompt",
    "Picture",
    "Image to image",
    "Refiner",
    "Micro-conditioning",
    "Deadline and priority",
    "Output",
]
GROUPS: tuple[Group, ...] = get_args(Group)
IMAGE_TO_IMAGE: Group = "Image to image"
Pair = Literal["WxH", "TOP,LEFT"]
_VAST = 1e6  # a wider range is not worth showing
Kind = Literal["slider", "number", "text", "choice", "switch", "own"]


@dataclass(frozen=True, slots=True)
class Control:
    """The element of the page that sets a field.

    Attributes:
        kind: the kind of element. If None, the field's type decides. "own" means that the page has
            code of its own for it, because the element does more than hold one field's value.
        name: the element's id is `sb-` followed by this. If empty, the field's name.
        label: the element's label. If empty, the field's label.
        low: the lowest value of a slider. If None, the field's bound.
        high: the highest value of a slider. If None, the field's bound.
        step: the step of a slider. If None, 1 for integers and a hundredth of the range otherwise.
        initial: the value that is shown first. If None, the field's default.
        placeholder: shown in an empty text element.
    """

    kind: Kind | None = None
    name: str = ""
    label: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    initial: object = None
    placeholder: str = ""


@dataclass(frozen=True, slots=True)
class Wire:
    """Metadata of one field.

    Attributes:
        label: the field's name for people. If empty, it is derived from the field's name.
        group: the group in which it is shown. Fields of "Image to image" need a picture to start
            from.
        cli: the names of its option, such as "--steps --num-inference-steps". If empty, the name is
            derived from the field's name, and a switch also has a `--no-…` form. None means that
            the commands have code of their own for the field.
        help: the option's help. If empty, the field's description and range.
        pair: how an option's two numbers are written. A size is sent as `[height, width]`, a
            position as `[top, left]`.
        control: its element on the page. None means that the page does not show it.
        setting: the setting that limits it further, such as `max_steps`.
        openai: its name in OpenAI's image API, if that has another name for the same value.
        a1111: its name in AUTOMATIC1111's API, if that takes the same value.
        infotext: its name in the parameters that AUTOMATIC1111 writes into a picture's file.
        aliases: names that other servers have for it, and that can mean nothing else. A call may
            use one of them instead.
    """

    label: str = ""
    group: Group = "Picture"
    cli: str | None = ""
    help: str = ""
    pair: Pair | None = None
    control: Control | None = Control()
    setting: str | None = None
    openai: str | None = None
    a1111: str | None = None
    infotext: str | None = None
    aliases: tuple[str, ...] = ()


def wire_of(name: str, field: FieldInfo) -> Wire:
    """The metadata of a field, with its label filled in."""
    wire = next((each for each in field.metadata if isinstance(each, Wire)), Wire())
    return replace(wire, label=wire.label or name.replace("_", " ").capitalize())


def wires(model: type[BaseModel]) -> Mapping[str, Wire]:
    """The metadata of all fields of a model, by the fields' names."""
    return {name: wire_of(name, field) for name, field in model.model_fields.items()}


def plain_type(annotation: Any) -> Any:
    """The type without `| None` and without metadata: `int` for `Annotated[int, …] | None`."""
    if get_origin(annotation) is Annotated:
        return plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        rest = [each for each in get_args(annotation) if each is not type(None)]
        return plain_type(rest[0]) if len(rest) == 1 else annotation
    return annotation


def choices(annotation: Any) -> tuple[str, ...]:
    """The values of a `Literal`; empty for other types."""
    plain = plain_type(annotation)
    return get_args(plain) if get_origin(plain) is Literal else ()


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """The lower and the upper bound of the field, each None if there is none."""
    limits = _limits(field)
    return limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))


def range_text(field: FieldInfo) -> str:
    """The range in words, such as "from 1 to 200"; empty if it is unbounded or very wide."""
    low, high = bounds(field)
    if low is None or high is None or high - low > _VAST:
        return ""
    limits = _limits(field)
    text = f"{'over' if 'gt' in limits else 'from'} {low:g}"
    return f"{text}, under {high:g}" if "lt" in limits else f"{text} to {high:g}"


def _limits(field: FieldInfo) -> dict[str, float]:
    names = ("ge", "gt", "le", "lt")
    values = ((name, getattr(each, name, None)) for each in field.metadata for name in names)
    return {name: value for name, value in values if value is not None}
