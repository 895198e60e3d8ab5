"""How a field of a request shows outside the service: a command line's option, a page's control,
a name in another protocol.

A field of `GenerateParams` says so in its annotation, beside its type:

    eta: Annotated[float, Wire("Eta", group="Picture")] = Field(
        0.0, ge=0.0, le=1.0, description="Noise that DDIM adds at each step."
    )

Everything in a `Wire` may be left out, and so may the `Wire` itself: names, help, type and bounds
then come from the field's own name, description, annotation and bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# Fields of a group stand together, in this order, on the command line and on the page.
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
_VAST = 1e6  # a range that tells nobody anything
Kind = Literal["slider", "number", "text", "choice", "switch", "own"]


@dataclass(frozen=True, slots=True)
class Control:
    """The element of the page that sets a field.

    Attributes:
        kind: if None: chosen by the field's type. "own": the page builds one by hand, because it
            does more than to hold one field's value.
        name: the element's id is `sb-` and this. If empty: the field's name.
        label: if empty: the field's.
        low: least value of a slider. If None: the field's own bound.
        high: greatest value of a slider. If None: the field's own bound.
        step: of a slider. If None: 1 for integers, a hundredth of the range otherwise.
        initial: what is offered first. If None: the field's default.
        placeholder: what an empty text shows.
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
        label: the field's name for people. If empty: made from the field's name.
        group: the fields it stands with. Those of "Image to image" need a picture to start from.
        cli: the names of its option, such as "--steps --num-inference-steps". If empty: made from
            the field's name, and a switch has a `--no-…` form, too. None: the commands take the
            field in a way of their own.
        help: the option's help. If empty: the field's description and range.
        pair: how an option's two numbers are written. A size is sent as `[height, width]`, a
            position as `[top, left]`.
        control: its element on the page. None: it is not on the page.
        setting: the setting that limits it further, such as `max_steps`.
        openai: its name in OpenAI's image API, where that has another one for the same value.
        a1111: its name in AUTOMATIC1111's API, where the same value is meant.
        infotext: its name in the parameters that AUTOMATIC1111 writes into a picture's file.
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


def wire_of(name: str, field: FieldInfo) -> Wire:
    """The metadata of a field, its label filled in."""
    wire = next((each for each in field.metadata if isinstance(each, Wire)), Wire())
    return replace(wire, label=wire.label or name.replace("_", " ").capitalize())


def wires(model: type[BaseModel]) -> Mapping[str, Wire]:
    """The metadata of all fields of a model, by their names."""
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
    """The values of a `Literal`, or none."""
    plain = plain_type(annotation)
    return get_args(plain) if get_origin(plain) is Literal else ()


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """The number that the field must not be under, and the one it must not be over."""
    limits = _limits(field)
    return limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))


def range_text(field: FieldInfo) -> str:
    """The range in words, such as "from 1 to 200"; empty if there is none, or a vast one."""
    low, high = bounds(field)
    if low is None or high is None or high - low > _VAST:
        return ""
    limits = _limits(field)
    text = f"{'over' if 'gt' in limits else 'from'} {low:g}"
    return f"{text}, under {high:g}" if "lt" in limits else f"{text} to {high:g}"


def _limits(field: FieldInfo) -> dict[str, float]:
    names = ("ge", "gt", "le", "lt")
    found = ((name, getattr(each, name, None)) for each in field.metadata for name in names)
    return {name: value for name, value in found if value is not None}
