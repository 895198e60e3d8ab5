"""The part of AUTOMATIC1111's API under /sdapi/v1 that draws. See docs/guides/automatic1111.md."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import InvalidInput, RequestNotFound, SDXLError
from sdxl_bento.order import Task
from sdxl_bento.protocols.a1111.answers import (
    Automatic1111Options,
    Automatic1111Scripts,
    lora_json,
    model_json,
    response_body,
    samplers_json,
    schedulers_json,
)
from sdxl_bento.protocols.a1111.fields import CHECKPOINT, overridden, to_native
from sdxl_bento.protocols.a1111.running_calls import RunningCalls
from sdxl_bento.protocols.http.answers import answer_headers
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Call, read_call
from sdxl_bento.protocols.http.errors import UnsupportedBody, error_response, logged
from sdxl_bento.protocols.http.translation import Rules, Translation

PROTOCOL = "automatic1111"
DEFAULT_FORMAT = "png"
_SKIP = "skip_current_image"


def routes() -> list[Route]:
    """For `app.web_app`."""
    return Automatic1111().routes()


class Automatic1111:
    """The routes, which share the running calls and the chosen model."""

    def __init__(self) -> None:
        self._calls = RunningCalls()
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
            Route("/sdapi/v1/refresh-loras", _refresh_loras, methods=post),
            Route("/sdapi/v1/scripts", _scripts),
        ]

    async def _txt2img(self, request: Request) -> Response:
        return await self._draw(request, "generate", MAX_JSON_BYTES)

    async def _img2img(self, request: Request) -> Response:
        return await self._draw(request, "img2img", MAX_UPLOAD_BYTES)

    async def _draw(self, request: Request, task: Task, max_bytes: int) -> Response:
        http_call = await read_call(request, max_bytes)
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):  # its files could not be returned as `parameters`
            error = UnsupportedBody("Content-Type", kind, "application/json")
            http_call = replace(http_call, fields={}, error=http_call.error or error)
        call = self._native_call(http_call, task, api_of(request).rules)
        try:
            with self._calls.running(call.request_id) as running:
                answer = await api_of(request).run(call, task, running.update)
        except Exception as error:  # every error is answered in the protocol's format
            return error_response(logged(error, call.request_id), call.request_id)
        body = http_call.fields if isinstance(http_call.fields, Mapping) else {}
        return JSONResponse(response_body(answer, body), headers=answer_headers(answer))

    def _native_call(self, call: Call, task: Task, rules: Rules) -> Call:
        """The call in native fields. What is wrong with it is its `error`."""
        call = replace(call, protocol=PROTOCOL)
        if call.error is not None:
            return call
        translation = Translation(rules, sent=dict(call.headers))
        try:
            fields = to_native(call.fields, self._model, task, translation)
        except SDXLError as error:
            return replace(call, error=error)
        return replace(call, fields=fields, translation=translation)

    async def _progress(self, request: Request) -> Response:
        sent = Translation(api_of(request).rules).known(request.query_params, (_SKIP,))
        skip = sent.get(_SKIP, "false").lower()
        if skip not in ("true", "1", "false", "0"):
            raise InvalidInput(_SKIP, skip, "true or false")
        return JSONResponse(await self._calls.progress(with_image=skip in ("false", "0")))

    async def _interrupt(self, request: Request) -> Response:
        call = self._calls.oldest()
        if call is not None:
            with suppress(RequestNotFound):  # it has just ended
                api_of(request).generator.calls.cancel(call.request_id)
        return JSONResponse({})

    async def _options(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._choose(request)
        models = api_of(request).generator.models.summaries()
        model = self._model or (models[0].name if models else None)
        body: Automatic1111Options = {
            "sd_model_checkpoint": model,
            "samples_format": DEFAULT_FORMAT,
        }
        return JSONResponse(body)

    async def _choose(self, request: Request) -> Response:
        """Set the model of the calls that name none, for all clients of this protocol."""
        call = await read_call(request, MAX_JSON_BYTES)
        try:
            if call.error is not None:
                raise call.error
            chosen = _model_in(api_of(request), call)
        except SDXLError as error:
            return error_response(error, call.request_id)
        self._model = chosen or self._model
        return JSONResponse(None)


def _model_in(api: API, call: Call) -> str | None:
    """The name of the model that options choose; None if they choose none.

    Clients send back all the options that they got, and some of their own defaults.

    Raises InvalidInput, ModelNotFound, NotReady.
    """
    options = call.fields
    if not isinstance(options, Mapping):
        raise InvalidInput("options", options, f"an object with {CHECKPOINT}")
    options = {name: options[name] for name in options if name not in call.headers}
    translation = Translation(api.rules)
    fields = overridden(options, translation, "")
    if (picture := fields.pop("output_format", DEFAULT_FORMAT)) != DEFAULT_FORMAT:
        allowed = f"{DEFAULT_FORMAT}, or another in the override_settings of a call"
        raise InvalidInput("samples_format", picture, allowed)
    if "output_quality" in fields:
        allowed = "nothing; it is one of the override_settings of a call"
        raise InvalidInput("jpeg_quality", fields["output_quality"], allowed)
    if "model" not in fields:
        return None
    if api.settings.workers > 1:
        allowed = "one of override_settings: this server's processes share no options"
        raise InvalidInput(CHECKPOINT, options[CHECKPOINT], allowed)
    try:
        return api.generator.models.ready(str(fields["model"])).name
    except SDXLError as error:
        raise translation.told(error) from None


async def _models(request: Request) -> Response:
    models = api_of(request).generator.models.summaries()
    return JSONResponse([model_json(model) for model in models])


async def _samplers(request: Request) -> Response:
    return JSONResponse(samplers_json())


async def _schedulers(request: Request) -> Response:
    return JSONResponse(schedulers_json())


async def _loras(request: Request) -> Response:
    models = api_of(request).generator.models
    await models.adapter_files.look()
    loras = await asyncio.to_thread(models.adapters)
    return JSONResponse([lora_json(lora) for lora in loras])


async def _refresh_loras(request: Request) -> Response:
    await api_of(request).generator.models.adapter_files.look()
    return JSONResponse(None)


async def _scripts(request: Request) -> Response:
    body: Automatic1111Scripts = {"txt2img": [], "img2img": []}
    return JSONResponse(body)
