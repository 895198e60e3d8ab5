"""From the values in the page's form to the fields of a native call, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.params import GenerateParams
from sdxl_bento.ui.controls import CONTROLS

MAX_LORAS = 8  # as many as a call may name
REFINE_STRENGTH = 0.3  # of the button that refines the chosen picture
_SIZE = re.compile(r"\s*(\d+)\s*(?:[x×*]|\s)\s*(\d+)\s*")

# The page's name of each native field, for its error messages.
LABELS: Mapping[str, str] = {
    **{name: wire.label for name, wire in wires(GenerateParams).items()},
    "width": "Size (width)",
    "height": "Size (height)",
    "width x height": "Size (pixels in all)",
    "image": "Picture",
    "image_id": "Picture",
}


def _initial() -> dict[str, Any]:
    return {name: control.initial for name, control in CONTROLS.items()}


@dataclass(frozen=True, slots=True)
class Form:
    """The values of the form's elements.

    `controls` has the values of the fields in `CONTROLS`, by name and in that order. `weights` has
    `MAX_LORAS` numbers, and the first of them belong to `loras`, name by name. All other values are
    those of elements that the page builds by hand.
    """

    prompt: str = ""
    model: str | None = None
    size: str = ""
    random: bool = True
    seed: str = ""
    controls: Mapping[str, Any] = field(default_factory=_initial)
    loras: Sequence[str] = ()
    weights: Sequence[float] = (1.0,) * MAX_LORAS

    @classmethod
    def of(cls, values: Sequence[Any]) -> Form:
        """From the values of `Layout.form`, which is in the order of `values`."""
        prompt, model, size, random, seed, *rest = values
        controls = dict(zip(CONTROLS, rest, strict=False))
        loras, *weights = rest[len(controls) :]
        return cls(prompt, model, size, random, seed, controls, loras, tuple(weights))

    def values(self) -> list[Any]:
        """The inverse of `of`."""
        own = [self.prompt, self.model, self.size, self.random, self.seed]
        return [*own, *(self.controls[name] for name in CONTROLS), self.loras, *self.weights]


def to_call(form: Form, *, with_picture: bool = False) -> dict[str, Any]:
    """The fields of a call. What was left empty stays unset.

    `with_picture`: the call starts from a picture, so that fields such as strength have a meaning.

    Raises InvalidInput for text that cannot be put into fields at all. All other checks are made
    where the calls of every protocol are checked.
    """
    if not form.prompt.strip():
        raise InvalidInput("prompt", form.prompt, "some words that say what to draw")
    call: dict[str, Any] = {"prompt": form.prompt}
    for name, control in CONTROLS.items():
        value = control.to_field(form.controls[name])
        if value is not None and (with_picture or not control.with_picture):
            call[name] = value
    if form.model:
        call["model"] = form.model
    if form.size.strip():
        call["width"], call["height"] = parse_size(form.size)
    if not form.random and form.seed.strip():
        call["seed"] = form.seed.strip()  # digits: a browser's numbers end at 2^53
    if form.loras:
        named = zip(form.loras, form.weights, strict=False)
        call["loras"] = [{"name": name, "scale": scale} for name, scale in named]
    return call


def without_base(call: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that only mean something to the base model."""
    return {name: value for name, value in call.items() if name not in ("loras", "refiner")}


def to_refining(call: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The fields of a call that lets the refiner redraw the picture that `call` has drawn."""
    kept = ("prompt", "negative_prompt", "model", "num_inference_steps", "guidance_scale")
    fields = {name: call[name] for name in kept if call.get(name) is not None}
    return {**fields, "seed": seed, "strength": REFINE_STRENGTH}


def from_call(call: Mapping[str, Any], seed: int, *, with_picture: bool) -> Form:
    """The form that asks for one picture again. `call` has all fields, with defaults filled in.

    `with_picture`: it was drawn from another picture, so that the call's strength had a meaning.
    """
    loras = call.get("loras", ())
    scales = [lora["scale"] for lora in loras]
    controls = {
        name: control.initial
        if control.with_picture and not with_picture
        else control.to_shown(call.get(name, control.default))
        for name, control in CONTROLS.items()
    }
    return Form(
        prompt=call["prompt"],
        model=call["model"],
        size=show_size(call["width"], call["height"]),
        random=False,
        seed=str(seed),
        controls=controls | {"num_images": 1},
        loras=[lora["name"] for lora in loras],
        weights=(*scales, *(1.0,) * (MAX_LORAS - len(scales))),
    )


def parse_size(text: str) -> tuple[int, int]:
    """`"1216 × 832"`, `"1216x832"` → (width, height). Raises InvalidInput."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInput("size", text, "width × height in pixels, such as 1024 × 768")
    return int(match[1]), int(match[2])


def show_size(width: int, height: int) -> str:
    """(width, height) in pixels → `"1216 × 832"`."""
    return f"{width} × {height}"


def keep_weights(
    before: Sequence[str], now: Sequence[str], weights: Sequence[float]
) -> tuple[float, ...]:
    """The weights in the order of the adapters chosen `now`; that of a new one is 1."""
    known = dict(zip(before, weights, strict=False))
    kept = [known.get(name, 1.0) for name in now[:MAX_LORAS]]
    return (*kept, *(1.0,) * (MAX_LORAS - len(kept)))
