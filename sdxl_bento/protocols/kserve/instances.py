"""Several instances of one HTTP call, each of which is a call of its own for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.serving.capacity import Capacity


async def draw_all(api: API, calls: Sequence[Call]) -> list[Answer]:
    """Run the calls at the same time, so that they share batches. Returns answers in their order.

    These protocols cannot express the error of one instance. The first error is raised, and the
    other calls are cancelled.
    """
    tasks = [asyncio.create_task(api.run(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def max_instances(api: API) -> int:
    """The most instances of one call: an idle server could not take more into its queue."""
    return Capacity.of(api.settings).pictures


def check_capacity(api: API, name: str, instances: Sequence[GenerateParams]) -> None:
    """Check that an idle server could take all pictures of several instances.

    Args:
        api: the service.
        name: what the caller calls the list of instances.
        instances: their parameters.

    Raises InvalidInput if they are too many, because a repeated call would be refused as well.
    """
    capacity = Capacity.of(api.settings)
    pixels = [_pixels(api, each) for each in instances for _ in range(each.num_images)]
    if len(instances) > 1 and not capacity.fits(pixels):
        shown = f"{len(pixels)} pictures with {sum(pixels) / 1e6:.1f} megapixels"
        allowed = (
            f"at most {capacity.pictures} pictures in one call on this server, of which those "
            f"after the first {capacity.running} have at most {capacity.waiting_pixels / 1e6:g} "
            "megapixels"
        )
        raise InvalidInput(name, shown, allowed)


def _pixels(api: API, params: GenerateParams) -> int:
    """The pixels of one picture. An unknown model has none here; it is refused for its name."""
    model = api.generator.models.find(params.model)
    if model is None:
        return 0
    summary = model.summary(default=False)
    width = params.width or summary.default_width
    return width * (params.height or summary.default_height)
