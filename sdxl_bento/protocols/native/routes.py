"""The native protocol: flat JSON in, a picture out. See docs/guides/native.md."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from sdxl_bento.errors import InvalidInput, NotReady, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.cache import ResultCache
from sdxl_bento.pictures.encode import MEDIA_TYPES, decode
from sdxl_bento.pictures.publish import Order, Picture, Pictures, Source, Task
from sdxl_bento.protocols.http.bodies import Call, picture_bytes
from sdxl_bento.protocols.http.errors import error_body, error_response, status_of
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.serving.metrics import Metrics
from sdxl_bento.serving.results import Generation, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.serving.generator import Generator, Progress
    from sdxl_bento.serving.results import Provenance

# A child of BentoML's logger, because only those show INFO under `bentoml serve`.
logger = logging.getLogger(f"bentoml.{__name__}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call: what was generated for it, and all its pictures as files.

    `generation.images` are those that were drawn: not the pictures that were cached.
    """

    generation: Generation
    pictures: tuple[Picture, ...]

    @property
    def cached(self) -> bool | None:
        """Whether nothing had to be drawn; None where nothing is cached."""
        known = [picture.cached for picture in self.pictures]
        return None if None in known else all(known)

    def images(self) -> list[Image]:
        """The pictures themselves. Of a cached JPEG or WebP, what can be read from its file."""
        drawn = {made.index: made.image for made in self.generation.images}
        return [
            drawn[each.index]
            if each.index in drawn
            else decode(each.data, each.width * each.height)
            for each in self.pictures
        ]


class NativeAPI:
    """The native routes, one method for each kind. Errors come back as answers, never as raises."""

    def __init__(
        self,
        generator: Generator,
        settings: Settings,
        pictures: Pictures,
        metrics: Metrics,
    ) -> None:
        self.generator = generator
        self.settings = settings
        self.pictures = pictures
        self._cache = ResultCache(generator, settings, pictures) if settings.result_cache else None
        self._metrics = metrics

    async def generate(self, call: Call) -> Response:
        """POST /generate: text to image."""
        return await self._respond(call, self.text_to_image)

    async def img2img(self, call: Call) -> Response:
        """POST /img2img: the base model redraws `image` as far as `strength` says."""
        return await self._respond(call, self.image_to_image)

    async def refine(self, call: Call) -> Response:
        """POST /refine: the refiner redraws `image`, or a stored picture."""
        return await self._respond(call, self.refine_image)

    async def generate_batch(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """POST /generate_batch: one result for each call, its error inside it."""
        return list(await asyncio.gather(*map(self._result, calls)))

    async def text_to_image(
        self, call: Call, on_progress: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Run one call without a picture. Raises SDXLError."""
        return await self._answer(call, Order("generate", call.params()), on_progress)

    async def run(self, call: Call, work: Awaitable[Answer]) -> Answer:
        """Await `work` while its client is there and its time is not over; count it."""

        async def awaited() -> Answer:
            return await work

        asked = call.fields.get("model") if isinstance(call.fields, Mapping) else None
        with self._metrics.request(call.protocol, self.generator.model_name(asked)):
            answer = await call.caller.wait_for(awaited(), self.settings.timeout_s)
        self._metrics.generated(call.protocol, answer.generation)
        return answer

    async def image_to_image(
        self, call: Call, on_progress: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Run one call with a picture in `image` or `image_id`. Raises SDXLError."""
        return await self._answer(call, await self._with_image(call, "img2img"), on_progress)

    async def refine_image(
        self, call: Call, on_progress: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Let the refiner redraw the picture in `image` or `image_id`. Raises SDXLError."""
        return await self._answer(call, await self._with_image(call, "refine"), on_progress)

    async def _with_image(self, call: Call, task: Task) -> Order:
        if call.error is not None:
            raise call.error
        fields = dict(call.fields) if isinstance(call.fields, Mapping) else {}
        image, image_id = fields.pop("image", None), _image_id(fields)
        params = parse_params(fields)
        if (image is None) == (image_id is None):
            raise InvalidInput("image", image, "a picture here, or the id of one in image_id")
        if image_id is None:
            data = picture_bytes(image)
        else:
            image_id = str(image_id)
            data = (await self.pictures.get(image_id)).data

        def read() -> Source:
            return Source.of(decode(data, self.settings.max_pixels), data, image_id)

        return Order(task, params, await asyncio.to_thread(read))

    async def _answer(
        self, call: Call, order: Order, on_progress: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Take what was drawn before from the cache, if there is one, and draw the rest."""
        if self._cache is None:
            generation = await self._draw(call, order, on_progress)
            provenance = await self._provenance(generation.params)
            return Answer(
                generation, tuple(await self.pictures.publish(order, generation, provenance))
            )
        begin = time.perf_counter()
        found = await self._cache.look_up(order, call.cache)
        order = replace(order, params=found.params)
        hits = len(found.pictures)
        if found.looked:
            self._metrics.looked_up(hits, order.params.num_images - hits)
        if hits == order.params.num_images:
            timings = Timings(0, 0, 0, 0, 0, time.perf_counter() - begin)
            generation = Generation(call.request_id, order.params, (), timings)
            return Answer(generation, tuple(found.pictures.values()))
        generation = await self._draw(call, order, on_progress, found.pictures)
        provenance = await self._provenance(generation.params)
        keys = {}
        if call.cache.write:
            keys = self._cache.keys(order, generation, found, provenance)
        drawn = await self.pictures.publish(order, generation, provenance, keys)
        pictures = sorted([*found.pictures.values(), *drawn], key=lambda each: each.index)
        return Answer(generation, tuple(pictures))

    async def _draw(
        self,
        call: Call,
        order: Order,
        on_progress: Callable[[Progress], None] | None,
        skip: Collection[int] = (),
    ) -> Generation:
        image = order.source.image if order.source is not None else None
        if order.task == "refine":
            assert image is not None
            draw = partial(self.generator.refine, image=image)
        else:
            draw = partial(self.generator.generate, image=image)
        request_id = call.request_id
        return await draw(order.params, request_id=request_id, on_progress=on_progress, skip=skip)

    async def _provenance(self, params: GenerateParams) -> Provenance | None:
        """What has drawn; None if that can no longer be told, which is no reason to fail."""
        try:
            return await asyncio.to_thread(self.generator.provenance, params)
        except SDXLError:
            return None

    async def _respond(self, call: Call, work: Callable[[Call], Awaitable[Answer]]) -> Response:
        try:
            answer = await self.run(call, work(call))
        except Exception as error:  # whatever it is, the client gets our error body
            return error_response(logged(error, call), call.request_id)
        headers = answer_headers(answer)
        if call.wants_json or len(answer.pictures) > 1:
            return JSONResponse(answer_json(answer), headers=headers)
        picture = answer.pictures[0]
        name = f"{picture.image_id or call.request_id}.{picture.output_format}"
        headers["Content-Disposition"] = f'inline; filename="{name}"'
        media_type = MEDIA_TYPES[picture.output_format]
        return Response(picture.data, headers=headers, media_type=media_type)

    async def _result(self, call: Call) -> dict[str, Any]:
        try:
            return answer_json(await self.run(call, self.text_to_image(call)))
        except Exception as error:  # its batch-mates are none the wiser
            body = error_body(logged(error, call), call.request_id)
            return {"error": body["error"] | {"status": int(status_of(error))}}


def logged(error: Exception, call: Call) -> Exception:
    """Log what is our fault, with its trace where it is unexpected. Returns the error."""
    if not isinstance(error, (SDXLError, TimeoutError)):
        logger.error("request %s failed", call.request_id, exc_info=error)
    elif status_of(error) >= 500 and not isinstance(error, NotReady):
        logger.warning("request %s: %s", call.request_id, error)
    return error


def answer_json(answer: Answer) -> dict[str, Any]:
    """The JSON form of an answer, pictures in base64."""
    made = answer.generation
    return {
        "id": answer.pictures[0].image_id,
        "request_id": made.request_id,
        "model": made.params.model,
        "images": [_picture_json(picture) for picture in answer.pictures],
        "params": made.params.model_dump(mode="json"),
        "timings": _milliseconds(made.timings),
    }


def answer_headers(answer: Answer) -> dict[str, str]:
    """What a client can know of a picture without parsing its file."""
    timings = _milliseconds(answer.generation.timings)
    stages = (f"{name.removesuffix('_ms')};dur={value:g}" for name, value in timings.items())
    headers = {
        "X-Request-Id": answer.generation.request_id,
        "X-Seed": ", ".join(str(picture.seed) for picture in answer.pictures),
        "X-Model": str(answer.generation.params.model),
        "Server-Timing": ", ".join(stages),
        "Cache-Control": "no-store",
    }
    ids = [picture.image_id for picture in answer.pictures if picture.image_id is not None]
    if len(ids) == len(answer.pictures):  # where one is missing, only JSON can say which
        headers["X-Image-Id"] = ", ".join(ids)
    return headers | cache_header([answer])


def cache_header(answers: Sequence[Answer]) -> dict[str, str]:
    """`X-Cache`: `hit` where nothing had to be drawn; no header where nothing is cached."""
    known = [answer.cached for answer in answers]
    return {} if None in known else {"X-Cache": "hit" if all(known) else "miss"}


def _picture_json(picture: Picture) -> dict[str, Any]:
    described = {
        "b64_json": base64.b64encode(picture.data).decode("ascii"),
        "format": picture.output_format,
        "seed": picture.seed,
        "image_id": picture.image_id,
        "width": picture.width,
        "height": picture.height,
    }
    if picture.cached is not None:
        described["cache"] = "hit" if picture.cached else "miss"
    return described


def _image_id(fields: dict[str, Any]) -> object:
    """Taken out of the fields: `image_id`, or `id`, as dstack's tutorial calls it."""
    image_id, other = fields.pop("image_id", None), fields.pop("id", None)
    if image_id is not None and other is not None:
        raise InvalidInput("id", other, "one of id and image_id, not both")
    return other if image_id is None else image_id


def _milliseconds(timings: Timings) -> dict[str, float]:
    """`{"queue_ms": …, …, "total_ms": …}`."""
    seconds = asdict(timings).items()
    return {f"{name.removesuffix('_s')}_ms": round(value * 1e3, 1) for name, value in seconds}
