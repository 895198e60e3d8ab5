"""From an order to its answer: look in the cache, draw, note what drew, publish.

This is what every protocol, the page and the command line have in common. It knows nothing of HTTP.
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
from sdxl_bento.pictures.encode import decode
from sdxl_bento.pictures.publish import Picture, Pictures
from sdxl_bento.serving.results import Generation, Progress, Provenance, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.serving.generator import Generator

OnProgress = Callable[[Progress], None]
CACHE_ALLOWED = CacheControl()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call: what was generated for it, and all its pictures as files.

    `generation.images` are those that were drawn: not the pictures that were cached.
    """

    generation: Generation
    pictures: tuple[Picture, ...]

    @property
    def order(self) -> Resolved:
        """The call as it was drawn."""
        return self.generation.order

    @property
    def cached(self) -> bool | None:
        """Whether nothing had to be drawn; None where nothing is cached."""
        known = [picture.cached for picture in self.pictures]
        return None if None in known else all(known)

    def images(self) -> list[Image]:
        """The pictures themselves. Of a cached JPEG or WebP, what can be read from its file."""
        drawn = {each.index: each.image for each in self.generation.images}
        return [
            drawn[each.index]
            if each.index in drawn
            else decode(each.data, each.width * each.height)
            for each in self.pictures
        ]


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
            generator: that draws.
            settings: of the service; `result_cache` says whether drawn pictures are looked up.
            pictures: where they are encoded and stored.
            on_look_up: is told how many pictures of a call the cache had, and had not.
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
        """Take what was drawn before from the cache, if there is one, and draw the rest.

        Cancelling the awaiting task cancels the pictures.

        Raises:
            InvalidInput, NotFound, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        resolved = self._generator.resolve(order)
        request_id = request_id or secrets.token_hex(8)
        if self._cache is None:
            generation = await self._run(resolved, request_id, on_progress)
            provenance = await self._provenance(generation.order)
            return Answer(generation, tuple(await self._pictures.publish(generation, provenance)))
        if order.params.seed is None:  # every such call is another picture: nothing can be found
            control = replace(control, read=False)
        return await self._draw_cached(self._cache, resolved, request_id, control, on_progress)

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
        wanted = order.params.num_images
        known: dict[int, Picture] = {}
        if control.read:
            known = await cache.look_up(order, before)
            self._on_look_up(len(known), wanted - len(known))
        if len(known) == wanted:
            timings = Timings(0, 0, 0, 0, 0, time.perf_counter() - begin)
            return Answer(Generation(request_id, order, (), timings), tuple(known.values()))
        generation = await self._run(order, request_id, on_progress, known)
        after = await self._provenance(generation.order)
        keys = cache.keys(order, generation, before, after) if control.write else {}
        drawn = await self._pictures.publish(generation, after, keys)
        pictures = sorted([*known.values(), *drawn], key=lambda each: each.index)
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

    async def _provenance(self, order: Resolved) -> Provenance | None:
        """What has drawn; None if that can no longer be told, which is no reason to fail."""
        try:
            return await asyncio.to_thread(self._generator.provenance, order)
        except SDXLError:
            return None
