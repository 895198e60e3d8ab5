"""Resolves orders, and plans the jobs that draw them."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from sdxl_bento.errors import AdapterNotFound, InvalidInput
from sdxl_bento.serving.capacity import Capacity
from sdxl_bento.serving.results import CallWarning

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.diffusion.plan import Job
    from sdxl_bento.diffusion.tokens import Unread
    from sdxl_bento.order import Order, Resolved
    from sdxl_bento.serving.registry import ModelRegistry
    from sdxl_bento.serving.results import Provenance

_SHOWN = 300  # characters of the text that was not read, in a warning


class Planner:
    """Checks orders against the models and the settings, and plans them. It draws nothing."""

    def __init__(self, models: ModelRegistry, settings: Settings) -> None:
        self._models = models
        self._settings = settings

    def resolve(self, order: Order) -> Resolved:
        """The order as it would be drawn, with every default filled in.

        Raises:
            InvalidInput, NotFound, NotReady: see `errors`.
        """
        from sdxl_bento.diffusion.plan import resolve

        model = self._models.get(order.params.model)
        if order.params.loras:
            available = model.served.adapters.names()
            for lora in order.params.loras:
                if lora.name not in available:
                    raise AdapterNotFound(lora.name, sorted(available))
        resolved = resolve(order, model.facts, secrets.randbits(32))
        self._check_limits(resolved, order)
        return resolved

    def plan(self, order: Resolved, *, wants_preview: bool = False) -> Job:
        """The job of the first picture. Raises InvalidInput, as `diffusion.plan.plan` does."""
        from sdxl_bento.diffusion.plan import plan

        facts = self._models.get(order.params.model).facts
        return plan(order, facts, wants_preview=wants_preview)

    def provenance(self, order: Resolved) -> Provenance:
        """What would draw the order now. It may read adapters' files, so call it from a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        from sdxl_bento.serving.provenance import provenance_of

        model = self._models.get(order.params.model)
        return provenance_of(model, order.params, self._settings)

    def warnings(self, order: Resolved) -> tuple[CallWarning, ...]:
        """What a drawn order lacks of what was asked for. It takes a while, so use a thread.

        Raises:
            NotFound, NotReady: see `errors`.
        """
        from sdxl_bento.diffusion.prompts import unread

        model = self._models.get(order.params.model)
        return tuple(map(truncated, unread(order, model.served.model)))

    def _check_limits(self, resolved: Resolved, order: Order) -> None:
        """Check the limits of this server, which may be lower than those of `GenerateParams`."""
        params, settings = resolved.params, self._settings
        pixels = params.width * params.height
        if params.num_inference_steps > settings.max_steps:
            steps = params.num_inference_steps
            raise _exceeds("num_inference_steps", steps, f"{settings.max_steps}")
        if params.num_images > settings.max_images:
            raise _exceeds("num_images", params.num_images, f"{settings.max_images}")
        if pixels > settings.max_pixels:
            raise _too_large(resolved, order, settings.max_pixels)
        # More than an idle server takes would be refused as often as the call is repeated.
        most = Capacity.of(settings).most(pixels)
        if params.num_images > most:
            what = f"{most} of {params.width} x {params.height}"
            raise _exceeds("num_images", params.num_images, what)


def truncated(prompt: Unread) -> CallWarning:
    """The warning about a prompt that is longer than the text encoders read."""
    rest = prompt.rest.strip()
    shown = rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]}…"
    return CallWarning(
        "prompt_truncated",
        prompt.field,
        f"only the first {prompt.read} of its {prompt.tokens} tokens are read; this is not: "
        + json.dumps(shown, ensure_ascii=False),
    )


def _exceeds(field: str, value: object, most: str) -> InvalidInput:
    return InvalidInput(field, value, f"at most {most} on this server")


def _too_large(resolved: Resolved, order: Order, most: int) -> InvalidInput:
    """The error about the size, which the caller may have left to the picture to redraw."""
    params = resolved.params
    if order.image is None or order.params.width or order.params.height:
        return _exceeds("width x height", f"{params.width} x {params.height}", f"{most} pixels")
    return InvalidInput(
        "image",
        "{}x{}".format(*order.image.size),
        f"a picture that is drawn with at most {most} pixels; this one would be drawn at "
        f"{params.width}x{params.height}",
    )
