"""Generated images as files: described, encoded, stored, and found again.

No failure of the store loses a picture that was drawn: it is answered without an id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sdxl_bento import __version__
from sdxl_bento.errors import StoreUnavailable
from sdxl_bento.params import GenerateParams, OutputFormat
from sdxl_bento.pictures.encode import Encoder
from sdxl_bento.pictures.infotext import embedded
from sdxl_bento.pictures.store import ImageStore, StoredImage

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.serving.results import GeneratedImage, Generation, Provenance

T = TypeVar("T")
Task = Literal["generate", "img2img", "refine"]

logger = logging.getLogger(f"bentoml.{__name__}")

_THREADS = 8  # of the store alone: one that hangs holds up nothing else
_STORE_S = 10.0  # a picture that was drawn waits no longer to be stored
_FETCH_S = 30.0
# Fields about when and how a call is run, which change nothing in its pictures.
_NOT_DRAWN = {"slo_ms", "priority", "degrade_min_steps"}


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that a call begins with. `image_id`: where it is one of the store's."""

    image: Image
    sha256: str
    image_id: str | None = None

    @classmethod
    def of(cls, image: Image, data: bytes, image_id: str | None) -> Source:
        """`data` is the file that `image` was read from."""
        return cls(image, sha256(data).hexdigest(), image_id)


@dataclass(frozen=True, slots=True)
class Order:
    """What a call wants to be drawn."""

    task: Task
    params: GenerateParams
    source: Source | None = None


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
    """The pictures of this process's calls, and the store that all processes share."""

    def __init__(self, settings: Settings, store: ImageStore) -> None:
        self._embed = settings.embed_metadata
        self._encoder = Encoder(settings.png_level)
        self._store = store
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sdxl-store")
        store.start_sweeping()

    async def get(self, image_id: str) -> StoredImage:
        """A stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetched(lambda store: store.get(image_id))

    async def describe(self, image_id: str) -> dict[str, Any]:
        """What is known of a stored picture. Raises ImageNotFound, StoreUnavailable."""
        return await self._fetched(lambda store: store.describe(image_id))

    async def publish(
        self,
        order: Order,
        generation: Generation,
        provenance: Provenance | None,
        keys: Mapping[int, str] | None = None,
    ) -> list[Picture]:
        """The drawn pictures of a call as files, each stored with all that made it.

        `keys` has, by a picture's index, what it is to be found again by; None: nothing is cached.
        """

        async def publish(made: GeneratedImage) -> Picture:
            params = one_of(generation.params, made.seed, made.steps)
            note = self._note(order, params, made, provenance)
            text = file_text(generation, made, order.task) if self._embed else {}
            data = await self._encoder.encode(
                made.image, params.output_format, params.output_quality, text
            )
            note["request_id"] = generation.request_id
            key = keys.get(made.index) if keys is not None else None
            image_id = await self._kept(data, params.output_format, note, key)
            cached = None if keys is None else False
            about = (data, params.output_format, image_id, made.seed)
            return Picture(*about, *made.image.size, made.index, cached)

        return list(await asyncio.gather(*map(publish, generation.images)))

    async def in_store(self, work: Callable[[ImageStore], T], timeout_s: float) -> T:
        """Run blocking work in the store's threads. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            return await loop.run_in_executor(self._pool, work, self._store)

    def close(self) -> None:
        """Finish what is under way."""
        self._encoder.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def _note(
        self,
        order: Order,
        params: GenerateParams,
        made: GeneratedImage,
        provenance: Provenance | None,
    ) -> dict[str, Any]:
        width, height = made.image.size
        return {
            "width": width,
            "height": height,
            "task": order.task,
            "params": describe(params, order.task),
            "source": _described_source(order.source),
            "drawn_by": None if provenance is None else _described_provenance(provenance),
        }

    async def _kept(
        self, data: bytes, output_format: OutputFormat, note: dict[str, Any], key: str | None
    ) -> str | None:
        def keep(store: ImageStore) -> str:
            image_id = store.put(data, output_format, note)
            if key is not None:
                store.put_result(key, image_id)
            return image_id

        try:
            return await self.in_store(keep, _STORE_S)
        except (StoreUnavailable, TimeoutError) as error:
            reason = error.__cause__ or f"no answer within {_STORE_S:g} s"
            logger.warning(
                "request %s: a picture could not be stored: %s", note["request_id"], reason
            )
            return None

    async def _fetched(self, work: Callable[[ImageStore], T]) -> T:
        try:
            return await self.in_store(work, _FETCH_S)
        except (StoreUnavailable, TimeoutError) as error:
            logger.warning("the image store does not answer: %s", error.__cause__ or error)
            raise StoreUnavailable from error


def one_of(params: GenerateParams, seed: int, steps: int | None = None) -> GenerateParams:
    """The parameters of one picture of a call, whose own are `params`."""
    own = {"seed": seed, "num_images": 1}
    return params.model_copy(update=own if steps is None else own | {"num_inference_steps": steps})


def file_text(generation: Generation, made: GeneratedImage, task: Task) -> dict[str, str]:
    """What is written into a picture's file, by the names of a PNG's text chunks."""
    params = one_of(generation.params, made.seed, made.steps)
    return embedded(params, describe(params, task), redrawn=task != "generate")


def describe(params: GenerateParams, task: Task) -> dict[str, Any]:
    """All parameters that a picture depends on, as a body for the route of its task.

    The same picture has the same description, however its call was made.
    """
    unused = set(_NOT_DRAWN)
    if task == "generate":
        unused.add("strength")
    if not params.refiner:
        unused.add("high_noise_frac")
        if task != "refine":
            unused |= {"aesthetic_score", "negative_aesthetic_score"}
    if not params.lora_late_ok or not params.loras:
        unused.add("lora_late_ok")
    if params.output_format == "png":
        unused.add("output_quality")
    described = params.model_dump(mode="json", exclude=unused, exclude_none=True)
    described["loras"] = sorted(described["loras"], key=lambda lora: str(lora["name"]))
    return described


def _described_source(source: Source | None) -> dict[str, Any] | None:
    return None if source is None else {"image_id": source.image_id, "sha256": source.sha256}


def _described_provenance(provenance: Provenance) -> dict[str, Any]:
    described = asdict(provenance)
    named = {name: dict(described[name]) for name in ("options", "loras")}
    return {"sdxl_bento": __version__, **described, **named}
