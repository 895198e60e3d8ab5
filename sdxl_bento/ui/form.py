"""What stands in the page's form, as the fields of a native call, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sdxl_bento.errors import InvalidInput

MAX_LORAS = 8  # as many as a call may name
STRENGTH, REFINE_STRENGTH = 0.6, 0.3  # what is offered at first
_SIZE = re.compile(r"\s*(\d+)\s*(?:[x×*]|\s)\s*(\d+)\s*")

# Native field → what the page calls it, for errors.
LABELS: Mapping[str, str] = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "model": "Model",
    "width": "Size (width)",
    "height": "Size (height)",
    "width x height": "Size (pixels in all)",
    "num_images": "Pictures",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "sampler": "Sampler",
    "loras": "LoRAs",
    "refiner": "Refiner",
    "strength": "Strength",
    "image": "Picture",
    "image_id": "Picture",
}


@dataclass(frozen=True, slots=True)
class Form:
    """The values of the form's elements, in the order of the page.

    `weights` has `MAX_LORAS` numbers, of which the first belong to `loras`, name by name.
    """

    prompt: str = ""
    negative: str = ""
    model: str | None = None
    size: str = ""
    count: int = 1
    steps: int = 25
    guidance: float = 5.0
    random: bool = True
    seed: str = ""
    sampler: str = ""
    refiner: bool = False
    strength: float = STRENGTH
    loras: Sequence[str] = ()
    weights: Sequence[float] = (1.0,) * MAX_LORAS

    @classmethod
    def of(cls, values: Sequence[Any]) -> Form:
        """From the values of the form's elements, the weights one by one at the end."""
        names = [field.name for field in fields(cls)[:-1]]
        named = dict(zip(names, values, strict=False))
        return cls(**named, weights=tuple(values[len(names) :]))

    def values(self) -> list[Any]:
        """The inverse of `of`."""
        named = [getattr(self, field.name) for field in fields(self)[:-1]]
        return [*named, *self.weights]


def to_call(form: Form) -> dict[str, Any]:
    """The fields of a call for a new picture. What was left empty stays unset.

    Raises InvalidInput for what cannot be put into fields at all; the rest is checked where every
    protocol's calls are.
    """
    if not form.prompt.strip():
        raise InvalidInput("prompt", form.prompt, "some words that say what to draw")
    call: dict[str, Any] = {"prompt": form.prompt, "num_images": form.count}
    call |= {"num_inference_steps": form.steps, "guidance_scale": form.guidance}
    given = {
        "negative_prompt": form.negative,
        "model": form.model,
        "sampler": form.sampler,
        "refiner": form.refiner,
    }
    call |= {name: value for name, value in given.items() if value}
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


def from_call(call: Mapping[str, Any], seed: int, *, begun: bool) -> Form:
    """The form that asks for one picture again: `call` has its fields with all defaults in.

    `begun`: it was drawn from another picture, so that the call's strength has meant something.
    """
    loras = call.get("loras", ())
    scales = [lora["scale"] for lora in loras]
    return Form(
        prompt=call["prompt"],
        negative=call.get("negative_prompt") or "",
        model=call["model"],
        size=show_size(call["width"], call["height"]),
        count=1,
        steps=call["num_inference_steps"],
        guidance=call["guidance_scale"],
        random=False,
        seed=str(seed),
        sampler=call.get("sampler") or "",
        refiner=call.get("refiner", False),
        strength=call["strength"] if begun else STRENGTH,
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
    """The weights in the order of the adapters chosen `now`; a new one starts at 1."""
    known = dict(zip(before, weights, strict=False))
    kept = [known.get(name, 1.0) for name in now[:MAX_LORAS]]
    return (*kept, *(1.0,) * (MAX_LORAS - len(kept)))
