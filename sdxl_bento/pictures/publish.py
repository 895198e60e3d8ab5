"""Drawn pictures as files: described, encoded and stored.

A failure of the store never loses a picture that was drawn: it is then answered without an id. Nor
does it hold up answers: each waits a short time for the store, and none does once it has failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sdxl_bento import __version__
from sdxl_bento.errors import NotFound, StoreUnavailable
from sdxl_bento.order import InputImage, Resolved
from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.breaker import Breaker
from sdxl_bento.pictures.describe import describe
from sdxl_bento.pictures.encode import Encoder
from sdxl_bento.pictures.infotext import embedded
from sdxl_bento.pictures.reasons import Rarely, reason
from sdxl_bento.pictures.store import ImageStore, StoredImage
from sdxl_bento.pictures.threads import DaemonPool

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.serving.metrics import Metrics
    from sdxl_bento.serving.results import GeneratedImage, Generation, Provenance

T = TypeVar("T")

logger = logging.getLogger(f"bentoml.{__name__}")

_THREADS = 8  # used for the store alone, so a store that hangs blocks nothing else
_FETCH_S = 10.0
_CLOSE_S = 2.0  # most seconds that the end of the process waits for the store


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded picture of an answer.

    `image_id` is None if the picture could not be stored. `cached` says whether the picture was
    drawn for an earlier call; it is None if the result cache is off.
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
    """Encodes the pictures of this process, and keeps them in the store that all processes share.

    Without a store, pictures are encoded and not kept, and have no ids.
    """

    def __init__(
        self, settings: Settings, store: ImageStore | None, metrics: Metrics | None = None
    ) -> None:
        """
        Args:
            settings: of the service.
            store: where pictures are kept.
            metrics: where the work of the store is counted, if anywhere.
        """
        self.timeout_s = settings.store_timeout_s
        self._embed = settings.embed_metadata
        self._encoder = Encoder(settings.png_level)
        self._store = store
        self._metrics = metrics
        self._pool = DaemonPool(_THREADS, "sdxl-store")
        self._breaker: Breaker | None = None
        self._closed = False
        self._write_failed, self._fetch_failed = Rarely(logger), Rarely(logger)
        if store is not None:
            self._breaker = Breaker(
                store.probe, within_s=self.timeout_s, on_change=self._availability_changed
            )
            if metrics is not None:
                store.on_damaged = metrics.store_damaged
                metrics.store_available(True)
            store.start_sweeping()

    async def get(self, image_id: str) -> StoredImage:
        """A stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetch(lambda store: store.get(image_id))

    async def describe(self, image_id: str) -> dict[str, Any]:
        """The metadata of a stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetch(lambda store: store.describe(image_id))

    async def publish(
        self,
        generation: Generation,
        provenance: Provenance | None,
        keys: Mapping[int, str] | None = None,
    ) -> list[Picture]:
        """Encode the drawn pictures of a call, and store each with its metadata.

        Args:
            generation: the drawn pictures.
            provenance: what has drawn them, if that can be told.
            keys: the result cache's key of each picture that may be found again, by the picture's
                index; None if the result cache is off.
        """

        async def publish_image(image: GeneratedImage) -> Picture:
            order = generation.order.single(image.index, image.steps)
            params = order.params
            text = embedded(order) if self._embed else {}
            data = await self._encoder.encode(
                image.image, params.output_format, params.output_quality, text
            )
            metadata = _metadata(order, image.image.size, provenance)
            metadata["request_id"] = generation.request_id
            key = keys.get(image.index) if keys is not None else None
            width, height = image.image.size
            return Picture(
                data=data,
                output_format=params.output_format,
                image_id=await self._keep(data, params.output_format, metadata, key),
                seed=image.seed,
                width=width,
                height=height,
                index=image.index,
                cached=None if keys is None else False,
            )

        return list(await asyncio.gather(*map(publish_image, generation.images)))

    async def in_store(self, work: Callable[[ImageStore], T], timeout_s: float) -> T:
        """Run blocking work in the store's threads.

        After failures in a row, the work is not even tried until the store answers again.

        Raises:
            StoreUnavailable: there is no store, it fails, it takes longer than `timeout_s`, or it
                has failed before. What happened is the `__cause__`, if there is one.
        """
        if self._store is None or self._breaker is None or self._closed:
            raise StoreUnavailable
        self._breaker.require()
        try:
            result = await self._run(work, self._store, timeout_s)
        except StoreUnavailable as error:
            self._breaker.failed(error)
            raise
        except NotFound:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return result

    async def _run(self, work: Callable[[ImageStore], T], store: ImageStore, timeout_s: float) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                return await loop.run_in_executor(self._pool, work, store)
        except TimeoutError:
            raise StoreUnavailable from TimeoutError(f"no answer within {timeout_s:g} s")

    def close(self) -> None:
        """Finish the work that has begun, then close the store. A store that hangs is left."""
        if self._closed:
            return
        self._closed = True
        self._encoder.close()
        if self._breaker is not None:
            self._breaker.close()
        if not self._pool.close(_CLOSE_S):
            logger.warning("the image store does not answer; work for it is abandoned")
        if self._store is not None:
            self._store.close()

    async def _keep(
        self, data: bytes, output_format: OutputFormat, metadata: dict[str, Any], key: str | None
    ) -> str | None:
        """Store a picture. Returns its id, or None if it could not be stored."""

        def keep(store: ImageStore) -> str:
            return store.put(data, output_format, metadata, key)

        if self._store is None:
            return None
        skipped = self._breaker is not None and self._breaker.is_open
        try:
            image_id = await self.in_store(keep, self.timeout_s)
        except StoreUnavailable as error:
            self._count("skipped" if skipped else "failed")
            self._write_failed.warn(
                "request %s: a picture could not be stored: %s",
                metadata["request_id"],
                reason(error),
            )
            return None
        self._count("stored")
        return image_id

    async def _fetch(self, work: Callable[[ImageStore], T]) -> T:
        try:
            return await self.in_store(work, _FETCH_S)
        except StoreUnavailable as error:
            self._fetch_failed.warn("the image store does not answer: %s", reason(error))
            raise

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.store_write(outcome)

    def _availability_changed(self, available: bool) -> None:
        if self._metrics is not None:
            self._metrics.store_available(available)
        if available:  # some threads may hang for ever in what was asked of the store before
            hanging, self._pool = self._pool, DaemonPool(_THREADS, "sdxl-store")
            hanging.close(within_s=0)


def _metadata(
    order: Resolved, size: tuple[int, int], provenance: Provenance | None
) -> dict[str, Any]:
    """What is stored beside a picture: all that is needed to draw it again."""
    width, height = size
    return {
        "width": width,
        "height": height,
        "task": order.task,
        "params": describe(order),
        "source": _describe_source(order.pictures.get("image")),
        "drawn_by": None if provenance is None else _describe_provenance(provenance),
    }


def _describe_source(source: InputImage | None) -> dict[str, Any] | None:
    return None if source is None else {"image_id": source.image_id, "sha256": source.sha256}


def _describe_provenance(provenance: Provenance) -> dict[str, Any]:
    fields = asdict(provenance)
    mappings = {name: dict(fields[name]) for name in ("options", "loras")}
    return {"sdxl_bento": __version__, **fields, **mappings}
