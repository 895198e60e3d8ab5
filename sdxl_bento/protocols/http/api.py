"""What the routes of all protocols draw with: it turns a call into its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdxl_bento.drawing import Answer, Drawing, OnProgress
from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.order import PICTURES_OF, InputImage, Order, PictureRole, Task
from sdxl_bento.pictures.decoder_pool import DecoderPool
from sdxl_bento.protocols.http.bodies import PICTURE_FIELDS, Call
from sdxl_bento.protocols.http.native_fields import native_fields
from sdxl_bento.protocols.http.off_loop import off_loop
from sdxl_bento.protocols.http.translation import Rules, Translation
from sdxl_bento.protocols.http.uploads import picture_bytes, shortened
from sdxl_bento.protocols.http.validation import parse_params

if TYPE_CHECKING:
    from PIL.Image import Image
    from starlette.requests import Request

    from sdxl_bento.config import Settings
    from sdxl_bento.pictures.publish import Pictures
    from sdxl_bento.serving.generator import Generator
    from sdxl_bento.serving.metrics import Metrics


class API:
    """The service behind all routes. A Starlette app has it as `state.api`."""

    def __init__(
        self, generator: Generator, settings: Settings, pictures: Pictures, metrics: Metrics
    ) -> None:
        self.generator = generator
        self.settings = settings
        self.pictures = pictures
        self._drawing = Drawing(generator, settings, pictures, metrics.looked_up)
        self._decoders = DecoderPool(settings)
        self._metrics = metrics

    @property
    def rules(self) -> Rules:
        """What this server's settings and models say about reading a call."""
        return Rules.of(self.settings, self.generator.models.sides())

    async def run(
        self, call: Call, task: Task = "generate", on_progress: OnProgress | None = None
    ) -> Answer:
        """Draw a call, as long as its client is connected and its time is not over, and count it.

        Errors and warnings name fields and values as the caller has sent them.

        Raises:
            SDXLError: see `errors`.
            TimeoutError: it took longer than `timeout_s`.
        """
        translation = call.translation or Translation(
            self.rules, sent=dict(call.headers), warnings=list(call.warnings)
        )

        async def draw() -> Answer:
            if call.error is not None:
                raise call.error
            try:
                answer = await self._drawing.draw(
                    await self._order(call, task, translation),
                    request_id=call.request_id,
                    control=call.cache,
                    on_progress=on_progress,
                )
            except SDXLError as error:
                if (told := translation.told(error)) is error:
                    raise
                raise told from error
            return replace(answer, warnings=translation.warned(answer.warnings))

        model = self.generator.models.name_of(call.model)
        with self._metrics.request(call.protocol, model):
            answer = await call.caller.wait_for(draw(), self.settings.timeout_s)
        self._metrics.generated(call.protocol, answer.generation)
        return answer

    async def read_picture(self, data: bytes, field: str = "image") -> Image:
        """Decode an uploaded file. Raises InvalidInput, Overloaded; see `DecoderPool.decode`."""
        return await self._decoders.decode(data, field)

    def close(self) -> None:
        """End the processes that decode pictures. It blocks for a moment."""
        self._decoders.close()

    async def _order(self, call: Call, task: Task, translation: Translation) -> Order:
        """The call's order, with its pictures decoded. Raises InvalidInput, ImageNotFound."""
        if call.validated is not None:
            return Order(task, call.validated)
        fields = call.fields
        if isinstance(fields, Mapping) and call.translation is None:
            of_pictures = (*PICTURE_FIELDS, "id") if PICTURES_OF[task] else ()
            fields = native_fields(fields, translation, more=of_pictures)
        if not PICTURES_OF[task]:
            return Order(task, parse_params(fields, self.rules))
        fields = dict(fields) if isinstance(fields, Mapping) else {}
        sent = {role: (fields.pop(role, None), _pop_id(fields, role)) for role in PICTURES_OF[task]}
        params = parse_params(fields, self.rules)
        pictures = {role: await self._picture(role, *values) for role, values in sent.items()}
        return Order(task, params, pictures)

    async def _picture(self, role: PictureRole, image: object, image_id: str | None) -> InputImage:
        """The picture in a field, or the one with an id in the store, whichever there is."""
        if (image is None) == (image_id is None):
            allowed = f"a picture here, or the id of one in {role}_id"
            raise InvalidInput(role, shortened(image), allowed)
        if image_id is None:
            size = len(image) if isinstance(image, str) else 0
            data = await off_loop(size, picture_bytes, image, role)
        else:
            data = (await self.pictures.get(image_id)).data

        decoded = await self.read_picture(data, role if image_id is None else f"{role}_id")
        return await asyncio.to_thread(InputImage.of, decoded, data, image_id)


def api_of(request: Request) -> API:
    """The service behind the app that the request came to."""
    api: API = request.app.state.api
    return api


def _pop_id(fields: dict[str, object], role: PictureRole) -> str | None:
    """Remove the field with a picture's id: `image_id`, or `id`, as dstack's tutorial calls it."""
    image_id = fields.pop(f"{role}_id", None)
    alias = fields.pop("id", None) if role == "image" else None
    if image_id is not None and alias is not None:
        raise InvalidInput("id", alias, f"one of id and {role}_id, not both")
    named = alias if image_id is None else image_id
    return None if named is None else str(named)
