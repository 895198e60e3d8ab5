"""V2's routes that ask about server and models; nothing is drawn here.

The models are those of the settings, loaded at start. Loading one of them again is nothing to do;
loading another and unloading are refused.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento import __version__
from sdxl_bento.errors import EngineDead, InvalidInput, ModelNotFound, NotReady
from sdxl_bento.protocols.http.api import api_of
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, read_json
from sdxl_bento.protocols.http.caller import limited
from sdxl_bento.protocols.kserve.v2.fields import OUTPUTS, inputs
from sdxl_bento.protocols.kserve.v2.routes import model_of
from sdxl_bento.serving.results import ModelSummary

EXTENSIONS = ["binary_tensor_data", "model_repository"]
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
    about = {"name": "sdxl-bento", "version": __version__, "extensions": EXTENSIONS}
    return JSONResponse(about)


async def _live(request: Request) -> Response:
    generator = api_of(request).generator
    if generator.state == "dead":
        raise EngineDead(f"the engine has died: {generator.state_reason}")
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    state = api_of(request).generator.state
    if state != "ready":
        raise NotReady(state)
    return JSONResponse({"ready": True})


async def _model_ready(request: Request) -> Response:
    model = api_of(request).generator.models.ready(model_of(request))
    return JSONResponse({"name": model.name, "ready": True})


async def _metadata(request: Request) -> Response:
    model = api_of(request).generator.models.ready(model_of(request))
    given = [
        {"name": name, "datatype": datatype, "shape": [-1] if size == 1 else [-1, size]}
        for name, (datatype, size) in inputs().items()
    ]
    made = [
        {"name": name, "datatype": datatype, "shape": [-1] if name != "pixels" else [-1, -1, -1, 3]}
        for name, datatype in OUTPUTS.items()
    ]
    about = {"name": model.name, "versions": [_version(model)], "platform": f"sdxl_{model.backend}"}
    return JSONResponse({**about, "inputs": given, "outputs": made})


async def _index(request: Request) -> Response:
    api = api_of(request)
    wants_ready = (await _document(request)).get("ready", False)
    if not isinstance(wants_ready, bool):
        raise InvalidInput("ready", wants_ready, "true or false")
    engine = api.generator.state
    if engine == "ready":
        known = [(model.name, _version(model)) for model in api.generator.models.summaries()]
        return JSONResponse([_indexed(*each, "READY", "") for each in known])
    if wants_ready:
        return JSONResponse([])
    state = "LOADING" if engine in ("new", "loading") else "UNAVAILABLE"
    reason = api.generator.state_reason or f"the engine is {engine}"
    tags = [tag.partition(":") for tag in api.settings.model_tags]
    return JSONResponse([_indexed(name, version, state, reason) for name, _, version in tags])


async def _load(request: Request) -> Response:
    generator = api_of(request).generator
    document = await _document(request)
    if document.get("parameters"):
        raise InvalidInput("parameters", document["parameters"], _STAY)
    try:
        generator.models.ready(model_of(request))
    except ModelNotFound as error:
        hint = "others are loaded at start, by SDXL_MODELS"
        raise ModelNotFound(error.name, error.available, hint) from None
    return JSONResponse({})


async def _unload(request: Request) -> Response:
    model = api_of(request).generator.models.ready(model_of(request))
    raise InvalidInput("unload", model.name, _STAY)


async def _document(request: Request) -> dict[str, Any]:
    document = read_json(await limited(request, MAX_JSON_BYTES).body())
    if not isinstance(document, dict):
        raise InvalidInput("body", document, "a JSON object, or nothing")
    return document


def _indexed(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def _version(model: ModelSummary) -> str:
    return model.tag.partition(":")[2]
