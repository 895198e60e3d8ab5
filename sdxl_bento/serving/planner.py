"""Resolves orders, and plans the jobs that draw them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from sdxl_bento.errors import AdapterNotFound, InvalidInput

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.diffusion.plan import Job
    from sdxl_bento.order import Order, Resolved
    from sdxl_bento.serving.registry import ModelRegistry
    from sdxl_bento.serving.results import Provenance


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
        self._check_limits(resolved)
        self._check_pixels(resolved, order)
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

    def _check_limits(self, order: Resolved) -> None:
        """Check the limits of this server, which may be lower than those of `GenerateParams`."""
        params, settings = order.params, self._settings
        limits = (
            ("num_inference_steps", params.num_inference_steps, settings.max_steps),
            ("num_images", params.num_images, settings.max_images),
        )
        for field, value, most in limits:
            if value > most:
                raise InvalidInput(field, value, f"at most {most} on this server")

    def _check_pixels(self, resolved: Resolved, order: Order) -> None:
        """Check the size, which the caller may have left to the picture to redraw."""
        params, most = resolved.params, self._settings.max_pixels
        pixels = params.width * params.height
        if pixels <= most:
            return
        if order.image is None or order.params.width or order.params.height:
            raise InvalidInput("width x height", pixels, f"at most {most} on this server")
        raise InvalidInput(
            "image",
            "{}x{}".format(*order.image.size),
            f"a picture that is drawn with at most {most} pixels; this one would be drawn at "
            f"{params.width}x{params.height}",
        )
