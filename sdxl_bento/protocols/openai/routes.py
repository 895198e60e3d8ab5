"""OpenAI's routes under /v1/images and /v1/models. See docs/guides/openai.md.

KServe's V1 has the same addresses for its models, so their answers have the fields of both.
"""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import SDXLError
from sdxl_bento.order import Task
from sdxl_bento.protocols.http.answers import answer_headers
from sdxl_bento.protocols.http.api import api_of
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Call, read_call
from sdxl_bento.protocols.http.translation import Rules, Translation
from sdxl_bento.protocols.openai.answers import (
    LoadedModel,
    OpenAIModels,
    error_response,
    model_json,
    response_body,
)
from sdxl_bento.protocols.openai.fields import AnswerOptions, to_native
from sdxl_bento.protocols.openai.stream import stream

PROTOCOL = "openai"
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}\Z")


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [
        Route("/v1/images/generations", _generations, methods=["POST"]),
        Route("/v1/images/edits", _edits, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{model}", _model),
    ]


async def _generations(request: Request) -> Response:
    return await _answer(request, "generate", MAX_JSON_BYTES)


async def _edits(request: Request) -> Response:
    return await _answer(request, "img2img", MAX_UPLOAD_BYTES)


async def _answer(request: Request, task: Task, max_bytes: int) -> Response:
    api = api_of(request)
    call, options = _native_call(await read_call(request, max_bytes), task, api.rules)
    if options.stream:
        return await stream(api, call, task, options)
    try:
        answer = await api.run(call, task)
    except Exception as error:  # every error is answered in the protocol's format
        return error_response(error, call)
    url = f"{_address(request)}/images" if options.as_url else None
    return JSONResponse(response_body(answer, url), headers=answer_headers(answer))


async def _models(request: Request) -> Response:
    models = api_of(request).generator.models.summaries()
    body: OpenAIModels = {
        "object": "list",
        "data": [model_json(model) for model in models],
        "models": [model.name for model in models],
    }
    return JSONResponse(body)


async def _model(request: Request) -> Response:
    model = api_of(request).generator.models.ready(request.path_params["model"])
    body: LoadedModel = {**model_json(model), "name": model.name, "ready": True}
    return JSONResponse(body)


def _native_call(call: Call, task: Task, rules: Rules) -> tuple[Call, AnswerOptions]:
    """The call in native fields, and how to answer it. What is wrong with it is its `error`."""
    call = replace(call, protocol=PROTOCOL)
    if call.error is not None:
        return call, AnswerOptions()
    translation = Translation(rules, sent=dict(call.headers))
    try:
        fields, options = to_native(call.fields, task, translation)
    except SDXLError as error:
        return replace(call, error=error), AnswerOptions()
    return replace(call, fields=fields, translation=translation), options


def _address(request: Request) -> str:
    """This server's URL as its clients know it, also behind a proxy that forwards it."""
    scheme, host = request.url.scheme, request.url.netloc
    proto = _first(request.headers.get("x-forwarded-proto", "")).lower()
    forwarded = _first(request.headers.get("x-forwarded-host", ""))
    scheme = proto if proto in ("http", "https") else scheme
    return f"{scheme}://{forwarded if _HOST.match(forwarded) else host}"


def _first(header: str) -> str:
    return header.split(",")[0].strip()
