"""From an order to its answer: look in the result cache, draw, find the provenance, publish.

Every protocol, the page and the command line draw through this module. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdxl_bento.errors import SDXLError
from sdxl_bento.order import Order, Resolved
from sdxl_bento.pictures.cache import CacheControl, ResultCache
from sdxl_bento.pictures.decode import decode
from sdxl_bento.pictures.publish import Picture, Pictures
from sdxl_bento.serving.results import CallWarning, Generation, Progress, Provenance, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.serving.generator import Generator

OnProgress = Callable[[Progress], None]
CACHE_ALLOWED = CacheControl()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call: what was drawn for it, and the files of all its pictures.

    `generation.images` holds only the pictures that were drawn, not those from the result cache.
    `warnings` say what the pictures lack of what was asked for.
    """

    generation: Generation
    pictures: tuple[Picture, ...]
    warnings: tuple[CallWarning, ...] = ()

    @property
    def order(self) -> Resolved:
        """The call as it was drawn."""
        return self.generation.order

    @property
    def cached(self) -> bool | None:
        """Whether all pictures came from the result cache; None if it is off."""
        cached = [picture.cached for picture in self.pictures]
        return None if None in cached else all(cached)

    def images(self) -> list[Image]:
        """All pictures. Those from the result cache are decoded from their files."""
        drawn = {image.index: image.image for image in self.generation.images}

        def image_of(picture: Picture) -> Image:
            if picture.index in drawn:
                return drawn[picture.index]
            return decode(picture.data, picture.width * picture.height)

        return [image_of(picture) for picture in self.pictures]


class Drawing:
    """Draws orders with one generator, and publishes their pictures."""

    def __init__(
        self,
        generator: Generator,
        settings: Settings,
        pictures: Pictures,
        on_look_up: Callable[[int, int], None] = lambda hits, misses: None,
    ) -> None:
        """
        Args:
            generator: draws the pictures.
            settings: of the service; `result_cache` turns the result cache on.
            pictures: encodes and stores them.
            on_look_up: called with the numbers of a call's pictures that the result cache had, and
                that it lacked.
        """
        self._generator = generator
        self._pictures = pictures
        self._cache = ResultCache(settings, pictures) if settings.result_cache else None
        self._on_look_up = on_look_up

    async def draw(
        self,
        order: Order,
        *,
        request_id: str | None = None,
        control: CacheControl = CACHE_ALLOWED,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Take pictures that were drawn before from the result cache, and draw the others.

        Cancelling the awaiting task cancels the pictures.

        Args:
            order: the call.
            request_id: its id; a random one if None.
            control: what the caller allows the result cache to do.
            on_progress: called in the event loop as the pictures progress.

        Raises:
            InvalidInput, NotFound, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        if order.params.loras:
            await self._generator.look_up_adapters(order)
        resolved = self._generator.resolve(order)
        request_id = request_id or secrets.token_hex(8)
        if self._cache is None:
            generation = await self._run(resolved, request_id, on_progress)
            provenance = await self._provenance(generation.order)
            pictures = tuple(await self._pictures.publish(generation, provenance))
            return Answer(generation, pictures, await self._warnings(resolved))
        if order.params.seed is None:  # the seed is random, so the cache cannot have the picture
            control = replace(control, read=False)
        answer = await self._draw_cached(self._cache, resolved, request_id, control, on_progress)
        return replace(answer, warnings=await self._warnings(resolved))

    async def _draw_cached(
        self,
        cache: ResultCache,
        order: Resolved,
        request_id: str,
        control: CacheControl,
        on_progress: OnProgress | None,
    ) -> Answer:
        begin = time.perf_counter()
        before = await asyncio.to_thread(self._generator.provenance, order)
        count = order.params.num_images
        cached: dict[int, Picture] = {}
        if control.read:
            cached = await cache.look_up(order, before)
            self._on_look_up(len(cached), count - len(cached))
        if len(cached) == count:
            timings = Timings(0, 0, 0, 0, 0, time.perf_counter() - begin)
            return Answer(Generation(request_id, order, (), timings), tuple(cached.values()))
        generation = await self._run(order, request_id, on_progress, cached)
        after = await self._provenance(generation.order)
        keys = cache.keys(order, generation, before, after) if control.write else {}
        drawn = await self._pictures.publish(generation, after, keys)
        pictures = sorted([*cached.values(), *drawn], key=lambda each: each.index)
        return Answer(generation, tuple(pictures))

    async def _run(
        self,
        order: Resolved,
        request_id: str,
        on_progress: OnProgress | None,
        skip: Collection[int] = (),
    ) -> Generation:
        return await self._generator.draw(
            order, request_id=request_id, on_progress=on_progress, skip=skip
        )

    async def _warnings(self, order: Resolved) -> tuple[CallWarning, ...]:
        """The warnings about an order; none if its model has gone meanwhile."""
        try:
            return await asyncio.to_thread(self._generator.warnings, order)
        except SDXLError:
            return ()

    async def _provenance(self, order: Resolved) -> Provenance | None:
        """The provenance of drawn pictures.

        None if it can no longer be determined, for example because an adapter's file was removed;
        the pictures are drawn and are answered all the same.
        """
        try:
            return await asyncio.to_thread(self._generator.provenance, order)
        except SDXLError:
            return None
