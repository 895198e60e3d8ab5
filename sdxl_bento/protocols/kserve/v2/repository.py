"""V2's routes that ask about the server and its models. They draw nothing.

The models are those of the settings and are loaded at start. To load one of them again succeeds and
does nothing. To load another, or to unload one, is refused.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import EngineDead, InvalidInput, ModelNotFound, NotReady
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, read_json
from sdxl_bento.protocols.http.caller import limited, whole_body
from sdxl_bento.protocols.http.off_loop import off_loop
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.kserve.v2.answers import (
    IndexedModel,
    ModelReady,
    ServerLive,
    ServerReady,
    model_metadata,
    server_metadata,
    version_of,
)
from sdxl_bento.protocols.kserve.v2.routes import model_of

_STAY = "nothing: models are those of SDXL_MODEL and SDXL_MODELS, loaded at start, and stay"


def routes() -> list[Route]:
    """For `app.web_app`."""
    models = [
        Route(f"/v2/models/{{model}}{version}{rest}", endpoint)
        for version in ("", "/versions/{version}")
        for rest, endpoint in (("", _metadata), ("/ready", _model_ready))
    ]
    return [
        Route("/v2", _server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        *models,
        Route("/v2/repository/index", _index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", _load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", _unload, methods=["POST"]),
    ]


async def _server(request: Request) -> Response:
    return JSONResponse(server_metadata())


async def _live(request: Request) -> Response:
    generator = api_of(request).generator
    if generator.state == "dead":
        raise EngineDead(f"the engine has died: {generator.state_reason}")
    body: ServerLive = {"live": True}
    return JSONResponse(body)


async def _ready(request: Request) -> Response:
    state = api_of(request).generator.state
    if state != "ready":
        raise NotReady(state)
    body: ServerReady = {"ready": True}
    return JSONResponse(body)


async def _model_ready(request: Request) -> Response:
    model = api_of(request).generator.models.ready(model_of(request))
    body: ModelReady = {"name": model.name, "ready": True}
    return JSONResponse(body)


async def _metadata(request: Request) -> Response:
    model = api_of(request).generator.models.ready(model_of(request))
    return JSONResponse(model_metadata(model))


async def _index(request: Request) -> Response:
    only_ready = (await _document(request, "ready")).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidInput("ready", only_ready, "true or false")
    return JSONResponse(_indexed_models(api_of(request), only_ready))


def _indexed_models(api: API, only_ready: bool) -> list[IndexedModel]:
    """The loaded models. Before they are loaded, those of the settings, unless `only_ready`."""
    state = api.generator.state
    if state == "ready":
        return [
            {"name": model.name, "version": version_of(model), "state": "READY", "reason": ""}
            for model in api.generator.models.summaries()
        ]
    if only_ready:
        return []
    reason = api.generator.state_reason or f"the engine is {state}"
    return [
        {
            "name": name,
            "version": version,
            "state": "LOADING" if state in ("new", "loading") else "UNAVAILABLE",
            "reason": reason,
        }
        for name, _, version in (tag.partition(":") for tag in api.settings.model_tags)
    ]


async def _load(request: Request) -> Response:
    generator = api_of(request).generator
    document = await _document(request, "parameters")
    if document.get("parameters", {}) not in ({}, None):
        raise InvalidInput("parameters", document["parameters"], _STAY)
    try:
        generator.models.ready(model_of(request))
    except ModelNotFound as error:
        hint = "others are loaded at start, by SDXL_MODELS"
        raise ModelNotFound(error.name, error.available, hint) from None
    return JSONResponse({})


async def _unload(request: Request) -> Response:
    await _document(request, "parameters")
    model = api_of(request).generator.models.ready(model_of(request))
    raise InvalidInput("unload", model.name, _STAY)


async def _document(request: Request, *known: str) -> dict[str, Any]:
    """The JSON of a request, whose fields have the `known` names."""
    body = await whole_body(limited(request, MAX_JSON_BYTES))
    document = await off_loop(len(body), read_json, body)
    if not isinstance(document, dict):
        raise InvalidInput("body", document, "a JSON object, or nothing")
    return Translation(api_of(request).rules).known(document, known)
