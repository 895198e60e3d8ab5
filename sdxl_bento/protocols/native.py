"""The native protocol: flat JSON in, a picture out. See docs/guides/native.md."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from sdxl_bento.errors import InvalidInput, NotReady, SDXLError
from sdxl_bento.images import MEDIA_TYPES, Encoder, ImageStore, decode
from sdxl_bento.metrics import Metrics
from sdxl_bento.params import GenerateParams, OutputFormat
from sdxl_bento.protocols.bodies import Call, picture_bytes
from sdxl_bento.protocols.http import error_body, error_response, status_of
from sdxl_bento.protocols.validation import parse_params

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings
    from sdxl_bento.generation import GeneratedImage, Generation, Generator, Progress, Timings

# A child of BentoML's logger, because only those show INFO under `bentoml serve`.
logger = logging.getLogger("bentoml.sdxl")


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded picture of an answer."""

    data: bytes
    output_format: OutputFormat
    image_id: str
    seed: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call: what was generated, and its pictures as files."""

    generation: Generation
    pictures: tuple[Picture, ...]


class NativeAPI:
    """The native routes, one method for each kind. Errors come back as answers, never as raises."""

    def __init__(
        self,
        generator: Generator,
        settings: Settings,
        store: ImageStore,
        encoder: Encoder,
        metrics: Metrics,
    ) -> None:
        self.generator = generator
        self.settings = settings
        self.store = store
        self._encoder = encoder
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
        params = call.params()
        work = self.generator.generate(params, request_id=call.request_id, on_progress=on_progress)
        return await self._finish(await work)

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
        params, image = await self._with_image(call)
        work = self.generator.generate(
            params, image=image, request_id=call.request_id, on_progress=on_progress
        )
        return await self._finish(await work)

    async def refine_image(
        self, call: Call, on_progress: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Let the refiner redraw the picture in `image` or `image_id`. Raises SDXLError."""
        params, image = await self._with_image(call)
        work = self.generator.refine(
            params, image=image, request_id=call.request_id, on_progress=on_progress
        )
        return await self._finish(await work)

    async def _with_image(self, call: Call) -> tuple[GenerateParams, Image]:
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
            data = (await asyncio.to_thread(self.store.get, str(image_id))).data
        return params, await asyncio.to_thread(decode, data, self.settings.max_pixels)

    async def _finish(self, generation: Generation) -> Answer:
        pictures = await asyncio.gather(*(self._picture(generation, i) for i in generation.images))
        return Answer(generation, tuple(pictures))

    async def _picture(self, generation: Generation, made: GeneratedImage) -> Picture:
        params = generation.params
        described = generation.described(made)
        # Nothing that differs from call to call goes in: the same seed gives the same bytes.
        text = {"sdxl-bento": json.dumps(described, ensure_ascii=False)}
        data = await self._encoder.encode(
            made.image, params.output_format, params.output_quality, text
        )
        note = {"request_id": generation.request_id, "params": described}
        image_id = await asyncio.to_thread(self.store.put, data, params.output_format, note)
        size = made.image.size
        return Picture(data, params.output_format, image_id, made.seed, *size)

    async def _respond(self, call: Call, work: Callable[[Call], Awaitable[Answer]]) -> Response:
        try:
            answer = await self.run(call, work(call))
        except Exception as error:  # whatever it is, the client gets our error body
            return error_response(logged(error, call), call.request_id)
        headers = answer_headers(answer)
        if call.wants_json or len(answer.pictures) > 1:
            return JSONResponse(answer_json(answer), headers=headers)
        picture = answer.pictures[0]
        name = f"{picture.image_id}.{picture.output_format}"
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
        "images": [
            {
                "b64_json": base64.b64encode(picture.data).decode("ascii"),
                "format": picture.output_format,
                "seed": picture.seed,
                "image_id": picture.image_id,
                "width": picture.width,
                "height": picture.height,
            }
            for picture in answer.pictures
        ],
        "params": made.params.model_dump(mode="json"),
        "timings": _milliseconds(made.timings),
    }


def answer_headers(answer: Answer) -> dict[str, str]:
    """What a client can know of a picture without parsing its file."""
    timings = _milliseconds(answer.generation.timings)
    stages = (f"{name.removesuffix('_ms')};dur={value:g}" for name, value in timings.items())
    return {
        "X-Request-Id": answer.generation.request_id,
        "X-Seed": ", ".join(str(picture.seed) for picture in answer.pictures),
        "X-Image-Id": ", ".join(picture.image_id for picture in answer.pictures),
        "X-Model": str(answer.generation.params.model),
        "Server-Timing": ", ".join(stages),
        "Cache-Control": "no-store",
    }


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
