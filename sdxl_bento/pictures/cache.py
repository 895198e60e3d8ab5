"""The result cache: pictures that were drawn before, with the same parameters by the same model.

The index is part of the image store, so all processes share it, and an entry disappears with its
picture. A key covers everything that the bytes of a picture's file depend on; a call's deadline and
priority are not part of it.
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
from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.pictures.describe import describe
from sdxl_bento.pictures.publish import Picture, Pictures
from sdxl_bento.pictures.reasons import Rarely, reason

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.order import Resolved
    from sdxl_bento.params import ResolvedParams
    from sdxl_bento.pictures.store import ImageStore, StoredImage
    from sdxl_bento.serving.results import Generation, Provenance

logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True, slots=True)
class CacheControl:
    """Whether a call may be answered from the cache, and whether its pictures may be added."""

    read: bool = True
    write: bool = True


class ResultCache:
    """Looks orders up, and decides under which keys their pictures are stored."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._pictures = pictures
        self._unused = Rarely(logger)
        self._file = {"embed_metadata": settings.embed_metadata, "png_level": settings.png_level}

    async def look_up(self, order: Resolved, provenance: Provenance) -> dict[int, Picture]:
        """The pictures of an order that were drawn before, by their index.

        Args:
            order: the call.
            provenance: what would draw it now.
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
        """The keys under which drawn pictures may be found again, by their index.

        A picture has no key if the same order might be drawn differently the next time: because
        steps were taken off, because an adapter may have been mixed in late, or because the
        provenance has changed while it was drawn.

        Args:
            order: the call as it was asked for.
            generation: what was drawn for it.
            before: the provenance before drawing.
            after: the provenance after drawing; None if it cannot be told any more.
        """
        params = order.params
        if after != before or (params.lora_late_ok and params.loras):
            return {}
        keys = self._keys(order, before)
        return {
            image.index: keys[image.index]
            for image in generation.images
            if image.steps in (None, params.num_inference_steps)
        }

    def _keys(self, order: Resolved, provenance: Provenance) -> list[str]:
        """One key for each picture of an order."""
        indices = range(order.params.num_images)
        return [key_of(order.single(index), provenance, self._file) for index in indices]

    async def _find(self, key: str, params: ResolvedParams) -> StoredImage | None:
        def find(store: ImageStore) -> StoredImage | None:
            stored = store.get_result(key, params.output_format)
            return stored and _renewed(store, key, stored)

        try:
            return await self._pictures.in_store(find, self._pictures.timeout_s)
        except StoreUnavailable as error:
            self._unused.warn("the result cache is not used for this call: %s", reason(error))
            return None


def key_of(order: Resolved, provenance: Provenance, file: Mapping[str, object]) -> str:
    """A key for everything that the bytes of one picture's file depend on: 64 hexadecimal digits.

    Args:
        order: a call for one picture.
        provenance: what draws it.
        file: the settings of its encoding.
    """
    content = {
        "version": __version__,
        "task": order.task,
        "params": describe(order),
        "pictures": {role: picture.sha256 for role, picture in order.pictures.items()},
        "provenance": asdict(provenance),
        "file": dict(file),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def _renewed(store: ImageStore, key: str, stored: StoredImage) -> StoredImage:
    """The same picture under an id that is valid for at least half of the store's `ttl_s`.

    An old picture is stored again under a new id; if that fails, the old id has to do.
    """
    if not store.is_ageing(stored.image_id):
        return stored
    try:
        image_id = store.put(stored.data, stored.output_format, stored.metadata, key)
    except StoreUnavailable:
        return stored
    return replace(stored, image_id=image_id)


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
