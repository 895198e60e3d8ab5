"""The part of AUTOMATIC1111's API under /sdapi/v1 that draws. See docs/guides/automatic1111.md."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import InvalidInput, RequestNotFound, SDXLError
from sdxl_bento.order import Task
from sdxl_bento.protocols.a1111.answers import response_body
from sdxl_bento.protocols.a1111.fields import NAMES, translated
from sdxl_bento.protocols.a1111.jobs import Jobs
from sdxl_bento.protocols.http.answers import answer_headers
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Call, read_call
from sdxl_bento.protocols.http.errors import UnsupportedBody, error_response, logged
from sdxl_bento.protocols.http.validation import renamed
from sdxl_bento.sampler_names import A1111_SAMPLERS, A1111_SCHEDULERS

PROTOCOL = "automatic1111"
_CHECKPOINT = "sd_model_checkpoint"


def routes() -> list[Route]:
    """For `app.web_app`."""
    return Automatic1111().routes()


class Automatic1111:
    """The routes. What they keep between calls is the running jobs and the chosen model."""

    def __init__(self) -> None:
        self._jobs = Jobs()
        self._model: str | None = None

    def routes(self) -> list[Route]:
        """All of them."""
        post = ["POST"]
        return [
            Route("/sdapi/v1/txt2img", self._txt2img, methods=post),
            Route("/sdapi/v1/img2img", self._img2img, methods=post),
            Route("/sdapi/v1/progress", self._progress),
            Route("/sdapi/v1/interrupt", self._interrupt, methods=post),
            Route("/sdapi/v1/options", self._options, methods=["GET", "POST"]),
            Route("/sdapi/v1/sd-models", _models),
            Route("/sdapi/v1/samplers", _samplers),
            Route("/sdapi/v1/schedulers", _schedulers),
            Route("/sdapi/v1/loras", _loras),
            Route("/sdapi/v1/scripts", _scripts),
        ]

    async def _txt2img(self, request: Request) -> Response:
        return await self._draw(request, "generate", MAX_JSON_BYTES)

    async def _img2img(self, request: Request) -> Response:
        return await self._draw(request, "img2img", MAX_UPLOAD_BYTES)

    async def _draw(self, request: Request, task: Task, max_bytes: int) -> Response:
        arrived = await read_call(request, max_bytes)
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):  # its files could not come back as `parameters`
            error = UnsupportedBody("Content-Type", kind, "application/json")
            arrived = replace(arrived, fields={}, error=arrived.error or error)
        call = self._translated(arrived, task)
        try:
            with self._jobs.running(call.request_id) as job:
                answer = await api_of(request).run(call, task, job.note)
        except Exception as error:  # whatever it is, the client gets our error body
            return error_response(renamed(logged(error, call.request_id), NAMES), call.request_id)
        asked = arrived.fields if isinstance(arrived.fields, Mapping) else {}
        return JSONResponse(response_body(answer, asked), headers=answer_headers(answer))

    def _translated(self, arrived: Call, task: Task) -> Call:
        """The call in native fields. What is wrong with it is its `error`."""
        call = replace(arrived, protocol=PROTOCOL)
        if call.error is not None:
            return call
        try:
            return replace(call, fields=translated(call.fields, self._model, task))
        except SDXLError as error:
            return replace(call, error=error)

    async def _progress(self, request: Request) -> Response:
        given = request.query_params.get("skip_current_image", "false").lower()
        if given not in ("true", "1", "false", "0"):
            raise InvalidInput("skip_current_image", given, "true or false")
        skip = given in ("true", "1")
        return JSONResponse(await self._jobs.progress(with_image=not skip))

    async def _interrupt(self, request: Request) -> Response:
        job = self._jobs.oldest()
        if job is not None:
            with suppress(RequestNotFound):  # it is over
                api_of(request).generator.calls.cancel(job.request_id)
        return JSONResponse({})

    async def _options(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._choose(request)
        models = api_of(request).generator.models.summaries()
        model = self._model or (models[0].name if models else None)
        return JSONResponse({_CHECKPOINT: model, "samples_format": "png"})

    async def _choose(self, request: Request) -> Response:
        """The model of the calls that name none, for everybody who uses this protocol."""
        api = api_of(request)
        arrived = await read_call(request, MAX_JSON_BYTES)
        try:
            if arrived.error is not None:
                raise arrived.error
            self._model = _chosen(api, arrived.fields)
        except SDXLError as error:
            return error_response(renamed(error, NAMES), arrived.request_id)
        return JSONResponse(None)


def _chosen(api: API, options: object) -> str:
    if not isinstance(options, Mapping) or set(options) - {"slo_ms", "priority"} != {_CHECKPOINT}:
        shown = sorted(options) if isinstance(options, Mapping) else options
        raise InvalidInput("options", shown, f"{_CHECKPOINT} alone")
    if api.settings.workers > 1:
        allowed = "one of override_settings: this server's processes share no options"
        raise InvalidInput(_CHECKPOINT, options[_CHECKPOINT], allowed)
    return api.generator.models.ready(str(options[_CHECKPOINT])).name


async def _models(request: Request) -> Response:
    described = [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": None,
            "sha256": None,
            "filename": model.tag,
            "config": None,
        }
        for model in api_of(request).generator.models.summaries()
    ]
    return JSONResponse(described)


async def _samplers(request: Request) -> Response:
    return JSONResponse([{"name": n, "aliases": [], "options": {}} for n in A1111_SAMPLERS])


async def _schedulers(request: Request) -> Response:
    return JSONResponse(
        [{"name": name, "label": name.capitalize(), "aliases": None} for name in A1111_SCHEDULERS]
    )


async def _loras(request: Request) -> Response:
    loras = api_of(request).generator.models.adapters()
    return JSONResponse(
        [{"name": each.name, "alias": each.name, "path": "", "metadata": {}} for each in loras]
    )


async def _scripts(request: Request) -> Response:
    return JSONResponse({"txt2img": [], "img2img": []})
