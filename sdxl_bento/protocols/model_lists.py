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

from sdxl_bento.protocols.http.api import api_of
from sdxl_bento.serving.results import ModelSummary

# OpenAI's models have a date of creation. Ours are made by whoever serves them.
_CREATED = int(time.time())


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [Route("/v1/models", _models), Route("/v1/models/{model}", _model)]


async def _models(request: Request) -> Response:
    models = api_of(request).generator.models.summaries()
    data = [_described(model) for model in models]
    names = [model.name for model in models]
    return JSONResponse({"object": "list", "data": data, "models": names})


async def _model(request: Request) -> Response:
    model = api_of(request).generator.models.ready(request.path_params["model"])
    return JSONResponse(_described(model) | {"name": model.name, "ready": True})


def _described(model: ModelSummary) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": _CREATED, "owned_by": "sdxl-bento"}
