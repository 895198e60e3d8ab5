"""GET /v1/models and /v1/models/{model}: two protocols share these addresses.

OpenAI's client reads `data`, `id` and `object`, KServe's V1 reads `models`, `name` and `ready`.
One object has the fields of both.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import ModelNotFound, NotReady
from sdxl_bento.serving.generator import Generator
from sdxl_bento.serving.results import ModelSummary

# OpenAI's models have a date of creation. Ours are made by whoever serves them.
_CREATED = int(time.time())


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [Route("/v1/models", _models), Route("/v1/models/{model}", _model)]


def found(generator: Generator, name: str) -> ModelSummary:
    """The loaded model of that name or tag. Raises ModelNotFound, NotReady."""
    if generator.state != "ready":
        raise NotReady(generator.state)
    for model in generator.models():
        if name in (model.name, model.tag):
            return model
    raise ModelNotFound(name, [model.name for model in generator.models()])


async def _models(request: Request) -> Response:
    models = _generator(request).models()
    data = [_described(model) for model in models]
    names = [model.name for model in models]
    return JSONResponse({"object": "list", "data": data, "models": names})


async def _model(request: Request) -> Response:
    model = found(_generator(request), request.path_params["model"])
    return JSONResponse(_described(model) | {"name": model.name, "ready": True})


def _described(model: ModelSummary) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": _CREATED, "owned_by": "sdxl-bento"}


def _generator(request: Request) -> Generator:
    generator: Generator = request.app.state.native.generator
    return generator
