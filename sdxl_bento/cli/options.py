"""The options of the commands. Those that set a field of a call come from the field's definition.

An option that is left out is not sent: the model or the server decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from sdxl_bento.cli.completion import lora_names, model_tags, one_of
from sdxl_bento.cli.fields import parsed
from sdxl_bento.fields import GROUPS, Wire, choices, plain_type, range_text, wires
from sdxl_bento.params import GenerateParams, LoraRef

_COMPLETIONS: Mapping[str, Callable[[str], list[str]]] = {
    "model": model_tags,
    "loras": lora_names,
}
# Options of a command's own that stand after a field's; others come before those of their panel.
_AFTER = {"size": "height", "refine_only": "strength", "quiet": "output_quality"}

Url = Annotated[
    str | None,
    typer.Option(
        help='A running server, as http://localhost:3000. If not given: SDXL_URL; "": none.',
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")]

Prompt = Annotated[str, typer.Argument(help="What to draw; - reads it from stdin.")]
Size = Annotated[
    str | None, typer.Option(help="Width and height, as 1024x768.", rich_help_panel="Picture")
]
Image = Annotated[
    Path | None,
    typer.Option(
        help="PNG, JPEG or WebP to redraw.", exists=True, dir_okay=False, readable=True,
        rich_help_panel="Image to image",
    ),
]  # fmt: skip
RefineOnly = Annotated[
    bool,
    typer.Option(
        "--refine-only", help="Let the refiner alone redraw it.", rich_help_panel="Image to image"
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="FILE|FOLDER/|-",
        help="A file; a folder, which exists or ends with /; or - for stdout. "
        "If not given: a file named for prompt and seed.",
        rich_help_panel="Output",
    ),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        "-f",
        help="Overwrite files instead of numbering new ones.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print nothing but errors to stderr.", rich_help_panel="Output"
    ),
]

Command = Callable[..., None]


def sets_fields(
    names: Collection[str] | None = None, model: type[BaseModel] = GenerateParams
) -> Callable[[Command], Command]:
    """Give a command the options of a call's fields.

    The command takes the fields that they mean as its first argument, `Fields`, and its own options
    by keyword. `--size` is added where the fields have a width and a height.

    Args:
        names: of the fields. None: all that have an option.
        model: where the fields are defined.

    Raises:
        TypeError: a field's type has no option; see `_option_type`.
    """
    chosen = {
        name: wire
        for name, wire in wires(model).items()
        if wire.cli is not None and (names is None or name in names)
    }
    options = [_parameter(name, wire, model.model_fields[name]) for name, wire in chosen.items()]
    sizes = [_keyword("size", Size)] if "width" in chosen else []

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @wraps(command)
        def run(**values: Any) -> None:
            size = values.pop("size", None)
            fields = parsed({name: values.pop(name) for name in chosen}, chosen, size)
            command(fields, **values)

        del run.__wrapped__  # typer looks at the signature
        signature = inspect.Signature(_ordered([*own, *sizes], options))
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        return run

    return decorate


def _ordered(
    own: list[inspect.Parameter], options: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Options without a panel first, then panel by panel, each in the order of the fields."""
    names = {each.name for each in options}
    ordered = [each for each in own if _AFTER.get(each.name) not in names]
    for parameter in options:
        ordered.append(parameter)
        ordered += [each for each in own if _AFTER.get(each.name) == parameter.name]
    panels = ["", *GROUPS]
    return sorted(ordered, key=lambda parameter: panels.index(_panel(parameter)))


def _panel(parameter: inspect.Parameter) -> str:
    for metadata in get_args(parameter.annotation):
        if isinstance(metadata, OptionInfo):
            return metadata.rich_help_panel or ""
    return ""


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _parameter(name: str, wire: Wire, field: FieldInfo) -> inspect.Parameter:
    """The option of a field."""
    option = typer.Option(
        *(wire.cli or "").split(),
        help=wire.help or _help(field),
        metavar=wire.pair,
        autocompletion=_completion(name, field),
        rich_help_panel=wire.group,
    )
    return _keyword(name, Annotated[_option_type(name, wire, field), option])


def _help(field: FieldInfo) -> str:
    """The field's description and its range: "Denoising steps. From 1 to 200."."""
    allowed = range_text(field)
    return " ".join(filter(None, (field.description, allowed and f"{allowed.capitalize()}.")))


def _completion(name: str, field: FieldInfo) -> Callable[[str], list[str]] | None:
    values = choices(field.annotation)
    return one_of(values) if values else _COMPLETIONS.get(name)


def _option_type(name: str, wire: Wire, field: FieldInfo) -> Any:
    """The type that typer parses the option's text to."""
    plain = plain_type(field.annotation)
    if wire.pair is not None or choices(plain):
        return str | None
    if plain in (str, int, float, bool):
        return plain | None
    if plain == tuple[LoraRef, ...]:
        return list[str] | None
    raise TypeError(
        f"the field {name} has the type {field.annotation}, which no option can hold: give its "
        "Wire cli=None and let the commands take it in a way of their own"
    )
