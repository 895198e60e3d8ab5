"""Pictures that were drawn before: the same parameters and seed, by the same artifact.

The index lies in the image store, so that all processes share it, and its entries go with their
pictures. A key covers all that a file's bytes depend on. What a call says of its deadline or
priority is not part of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from sdxl_bento import __version__
from sdxl_bento.errors import ImageNotFound, StoreUnavailable
from sdxl_bento.pictures.publish import Order, Picture, Pictures, describe, one_of

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.params import GenerateParams
    from sdxl_bento.pictures.store import ImageStore, StoredImage
    from sdxl_bento.serving.generator import Generator
    from sdxl_bento.serving.results import Generation, Provenance

logger = logging.getLogger(f"bentoml.{__name__}")
_LOOK_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What a caller allows: to be answered from the cache, and to leave something in it."""

    read: bool = True
    write: bool = True

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> CacheControl:
        """By the request's `Cache-Control` (RFC 9111, 5.2.1)."""
        given = headers.get("cache-control", "").lower().split(",")
        directives = {each.strip().replace(" ", "") for each in given}
        return cls(
            read=directives.isdisjoint({"no-cache", "max-age=0"}),
            write="no-store" not in directives,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What is known before a call is drawn: the pictures that there are, by their index.

    `params` are resolved; `provenance` is what would draw the others. `looked`: they were looked
    for.
    """

    params: GenerateParams
    provenance: Provenance
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    looked: bool = False


class ResultCache:
    """Looks calls up, and says what their pictures are to be kept as."""

    def __init__(self, generator: Generator, settings: Settings, pictures: Pictures) -> None:
        self._generator = generator
        self._pictures = pictures
        self._file = {"embed_metadata": settings.embed_metadata, "png_level": settings.png_level}

    async def look_up(self, order: Order, control: CacheControl) -> Found:
        """The pictures that were drawn before for such a call: none without a seed.

        Raises what `Generator.generate` raises for wrong parameters.
        """
        image = order.source.image if order.source is not None else None
        params = self._generator.resolved(order.params, image)
        provenance = await asyncio.to_thread(self._generator.provenance, params)
        found = Found(params, provenance)
        if order.params.seed is None or not control.read:
            return found
        keys = self._keys(replace(order, params=params), provenance)
        looked = await asyncio.gather(*(self._find(key, params) for key in keys))
        pictures = {
            index: _picture(stored, params, index)
            for index, stored in enumerate(looked)
            if stored is not None
        }
        return replace(found, pictures=pictures, looked=True)

    def keys(
        self, order: Order, generation: Generation, before: Found, after: Provenance | None
    ) -> dict[int, str]:
        """What drawn pictures may be found by, by their index.

        Those are left out which the same call might draw otherwise again: steps were taken off,
        an adapter may have come late, or what draws has changed while it drew.
        """
        params = before.params
        if after != before.provenance or (params.lora_late_ok and params.loras):
            return {}
        keys = self._keys(replace(order, params=params), after)
        return {
            made.index: keys[made.index]
            for made in generation.images
            if made.steps in (None, params.num_inference_steps)
        }

    def _keys(self, order: Order, provenance: Provenance) -> list[str]:
        """One for each picture of a call with resolved parameters."""
        assert order.params.seed is not None
        seeds = range(order.params.seed, order.params.seed + order.params.num_images)
        singles = (replace(order, params=one_of(order.params, seed)) for seed in seeds)
        return [key_of(single, provenance, self._file) for single in singles]

    async def _find(self, key: str, params: GenerateParams) -> StoredImage | None:
        def find(store: ImageStore) -> StoredImage | None:
            found = store.get_result(key, params.output_format)
            return found and _lasting(store, key, found)

        try:
            return await self._pictures.in_store(find, _LOOK_UP_S)
        except (StoreUnavailable, TimeoutError) as error:
            logger.warning("the result cache is passed over: %s", error.__cause__ or "no answer")
            return None


def key_of(order: Order, provenance: Provenance, file: Mapping[str, object]) -> str:
    """64 hexadecimal digits for all that the bytes of one picture's file depend on.

    `order` is for one picture, with resolved parameters; `file` are the settings of its encoding.
    """
    what = {
        "version": __version__,
        "task": order.task,
        "params": describe(order.params, order.task),
        "source": order.source.sha256 if order.source is not None else None,
        "provenance": asdict(provenance),
        "file": dict(file),
    }
    text = json.dumps(what, sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def _lasting(store: ImageStore, key: str, found: StoredImage) -> StoredImage:
    """The same picture, under an id that is good for half of the store's time at least."""
    if not store.is_ageing(found.image_id):
        return found
    try:
        whole = store.get(found.image_id)
        image_id = store.put(whole.data, whole.output_format, whole.metadata)
        store.put_result(key, image_id)
    except (ImageNotFound, StoreUnavailable):
        return found
    return replace(found, image_id=image_id)


def _picture(stored: StoredImage, params: GenerateParams, index: int) -> Picture:
    assert params.seed is not None
    assert params.width is not None
    assert params.height is not None
    about = (stored.data, stored.output_format, stored.image_id, params.seed + index)
    return Picture(*about, params.width, params.height, index, cached=True)
