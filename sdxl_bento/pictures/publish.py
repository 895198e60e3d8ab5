"""Generated images as files: described, encoded, stored, and found again.

No failure of the store loses a picture that was drawn: it is answered without an id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sdxl_bento import __version__
from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.order import InputImage, Resolved
from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.describe import describe
from sdxl_bento.pictures.encode import Encoder
from sdxl_bento.pictures.infotext import embedded
from sdxl_bento.pictures.store import ImageStore, StoredImage

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.serving.results import GeneratedImage, Generation, Provenance

T = TypeVar("T")

logger = logging.getLogger(f"bentoml.{__name__}")

_THREADS = 8  # of the store alone: one that hangs holds up nothing else
_STORE_S = 10.0  # a picture that was drawn waits no longer to be stored
_FETCH_S = 30.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded picture of an answer.

    `image_id` is None where the store did not take it. `cached` says whether it was drawn for an
    earlier call, None where nothing is cached.
    """

    data: bytes
    output_format: OutputFormat
    image_id: str | None
    seed: int
    width: int
    height: int
    index: int = 0
    cached: bool | None = None


class Pictures:
    """The pictures of this process's calls, and the store that all processes share.

    Without a store pictures are encoded and not kept; they have no ids.
    """

    def __init__(self, settings: Settings, store: ImageStore | None) -> None:
        self._embed = settings.embed_metadata
        self._encoder = Encoder(settings.png_level)
        self._store = store
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sdxl-store")
        if store is not None:
            store.start_sweeping()

    async def get(self, image_id: str) -> StoredImage:
        """A stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetched(lambda store: store.get(image_id))

    async def describe(self, image_id: str) -> dict[str, Any]:
        """What is known of a stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetched(lambda store: store.describe(image_id))

    async def publish(
        self,
        generation: Generation,
        provenance: Provenance | None,
        keys: Mapping[int, str] | None = None,
    ) -> list[Picture]:
        """The drawn pictures of a call as files, each stored with all that went into it.

        `keys` has, by a picture's index, what it is to be found again by; None: nothing is cached.
        """

        async def publish(drawn: GeneratedImage) -> Picture:
            order = generation.order.single(drawn.index, drawn.steps)
            params = order.params
            text = embedded(order) if self._embed else {}
            data = await self._encoder.encode(
                drawn.image, params.output_format, params.output_quality, text
            )
            metadata = _metadata(order, drawn.image.size, provenance)
            metadata["request_id"] = generation.request_id
            key = keys.get(drawn.index) if keys is not None else None
            width, height = drawn.image.size
            return Picture(
                data=data,
                output_format=params.output_format,
                image_id=await self._kept(data, params.output_format, metadata, key),
                seed=drawn.seed,
                width=width,
                height=height,
                index=drawn.index,
                cached=None if keys is None else False,
            )

        return list(await asyncio.gather(*map(publish, generation.images)))

    async def in_store(self, work: Callable[[ImageStore], T], timeout_s: float) -> T:
        """Run blocking work in the store's threads. Raises TimeoutError, StoreUnavailable."""
        if self._store is None:
            raise StoreUnavailable
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            return await loop.run_in_executor(self._pool, work, self._store)

    def close(self) -> None:
        """Finish what is under way."""
        self._encoder.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def _kept(
        self, data: bytes, output_format: OutputFormat, metadata: dict[str, Any], key: str | None
    ) -> str | None:
        def keep(store: ImageStore) -> str:
            image_id = store.put(data, output_format, metadata)
            if key is not None:
                store.put_result(key, image_id)
            return image_id

        if self._store is None:
            return None
        try:
            return await self.in_store(keep, _STORE_S)
        except (StoreUnavailable, TimeoutError) as error:
            reason = error.__cause__ or f"no answer within {_STORE_S:g} s"
            logger.warning(
                "request %s: a picture could not be stored: %s", metadata["request_id"], reason
            )
            return None

    async def _fetched(self, work: Callable[[ImageStore], T]) -> T:
        try:
            return await self.in_store(work, _FETCH_S)
        except (StoreUnavailable, TimeoutError) as error:
            logger.warning("the image store does not answer: %s", error.__cause__ or error)
            raise StoreUnavailable from error


def _metadata(
    order: Resolved, size: tuple[int, int], provenance: Provenance | None
) -> dict[str, Any]:
    """What is kept of a picture beside it: all that is needed to draw it again."""
    width, height = size
    return {
        "width": width,
        "height": height,
        "task": order.task,
        "params": describe(order),
        "source": _described_source(order.source),
        "drawn_by": None if provenance is None else _described_provenance(provenance),
    }


def _described_source(source: InputImage | None) -> dict[str, Any] | None:
    return None if source is None else {"image_id": source.image_id, "sha256": source.sha256}


def _described_provenance(provenance: Provenance) -> dict[str, Any]:
    described = asdict(provenance)
    named = {name: dict(described[name]) for name in ("options", "loras")}
    return {"sdxl_bento": __version__, **described, **named}
