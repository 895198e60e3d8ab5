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
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from sdxl_bento import __version__
from sdxl_bento.errors import ImageNotFound, StoreUnavailable
from sdxl_bento.pictures.describe import describe
from sdxl_bento.pictures.publish import Picture, Pictures

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.order import Resolved
    from sdxl_bento.params import ResolvedParams
    from sdxl_bento.pictures.store import ImageStore, StoredImage
    from sdxl_bento.serving.results import Generation, Provenance

logger = logging.getLogger(f"bentoml.{__name__}")
_LOOK_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What a caller allows: to be answered from the cache, and to leave something in it."""

    read: bool = True
    write: bool = True


class ResultCache:
    """Looks orders up, and says what their pictures are to be kept as."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._pictures = pictures
        self._file = {"embed_metadata": settings.embed_metadata, "png_level": settings.png_level}

    async def look_up(self, order: Resolved, provenance: Provenance) -> dict[int, Picture]:
        """The pictures that were drawn before for such an order, by their index.

        `provenance` is what would draw it now.
        """
        keys = self._keys(order, provenance)
        stored = await asyncio.gather(*(self._find(key, order.params) for key in keys))
        return {
            index: _picture(each, order.params, index)
            for index, each in enumerate(stored)
            if each is not None
        }

    def keys(
        self,
        order: Resolved,
        generation: Generation,
        before: Provenance,
        after: Provenance | None,
    ) -> dict[int, str]:
        """What drawn pictures may be found by, by their index.

        Those are left out which the same order might draw otherwise again: steps were taken off,
        an adapter may have come late, or what draws has changed while it drew.
        """
        params = order.params
        if after != before or (params.lora_late_ok and params.loras):
            return {}
        keys = self._keys(order, before)
        return {
            drawn.index: keys[drawn.index]
            for drawn in generation.images
            if drawn.steps in (None, params.num_inference_steps)
        }

    def _keys(self, order: Resolved, provenance: Provenance) -> list[str]:
        """One for each picture of an order."""
        pictures = range(order.params.num_images)
        return [key_of(order.single(index), provenance, self._file) for index in pictures]

    async def _find(self, key: str, params: ResolvedParams) -> StoredImage | None:
        def find(store: ImageStore) -> StoredImage | None:
            found = store.get_result(key, params.output_format)
            return found and _lasting(store, key, found)

        try:
            return await self._pictures.in_store(find, _LOOK_UP_S)
        except (StoreUnavailable, TimeoutError) as error:
            logger.warning("the result cache is passed over: %s", error.__cause__ or "no answer")
            return None


def key_of(order: Resolved, provenance: Provenance, file: Mapping[str, object]) -> str:
    """64 hexadecimal digits for all that the bytes of one picture's file depend on.

    `order` is for one picture; `file` are the settings of its encoding.
    """
    what = {
        "version": __version__,
        "task": order.task,
        "params": describe(order),
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


def _picture(stored: StoredImage, params: ResolvedParams, index: int) -> Picture:
    return Picture(
        data=stored.data,
        output_format=stored.output_format,
        image_id=stored.image_id,
        seed=params.seed + index,
        width=params.width,
        height=params.height,
        index=index,
        cached=True,
    )
