"""The native routes that draw nothing: lists, statistics, stored pictures, cancellation."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.protocols.http.api import api_of
from sdxl_bento.protocols.native.answers import Cancelled, LoraList, ModelList, SamplerList
from sdxl_bento.sampler_names import SAMPLERS

# A browser must not interpret a picture as anything else.
_SAFE = {"X-Content-Type-Options": "nosniff"}


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [
        Route("/models", _models),
        Route("/loras", _loras),
        Route("/loras/refresh", _loras, methods=["POST"]),
        Route("/samplers", _samplers),
        Route("/stats", _stats),
        Route("/images/{image_id}", _image),
        Route("/images/{image_id}/metadata", _metadata),
        Route("/download/{image_id}", _download),
        Route("/cancel/{request_id}", _cancel, methods=["POST"]),
    ]


async def _models(request: Request) -> Response:
    body: ModelList = {"models": api_of(request).generator.models.summaries()}
    return JSONResponse({"models": [asdict(model) for model in body["models"]]})


async def _loras(request: Request) -> Response:
    models = api_of(request).generator.models
    await models.adapter_files.look()
    body: LoraList = {"loras": await asyncio.to_thread(models.adapters)}
    rows = await asyncio.to_thread(lambda: [asdict(lora) for lora in body["loras"]])
    return JSONResponse({"loras": rows})


async def _samplers(request: Request) -> Response:
    body: SamplerList = {"samplers": list(SAMPLERS)}
    return JSONResponse(body)


async def _stats(request: Request) -> Response:
    generator = api_of(request).generator
    state = {"state": generator.state, "state_reason": generator.state_reason}
    return JSONResponse({**generator.activity.stats(), **state})


async def _image(request: Request) -> Response:
    return await _stored(request, "inline")


async def _download(request: Request) -> Response:
    return await _stored(request, "attachment")


async def _stored(request: Request, disposition: str) -> Response:
    # A file name is accepted too, so that a link can end in .png.
    image_id = request.path_params["image_id"].partition(".")[0]
    image = await api_of(request).pictures.get(image_id)
    headers = {
        **_SAFE,
        "Content-Disposition": f'{disposition}; filename="{image_id}.{image.output_format}"',
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Image-Id": image.image_id,
    }
    params = image.metadata.get("params")
    if isinstance(params, dict) and isinstance(params.get("seed"), int):
        headers["X-Seed"] = str(params["seed"])
    return Response(image.data, headers=headers, media_type=image.media_type)


async def _metadata(request: Request) -> Response:
    described = await api_of(request).pictures.describe(request.path_params["image_id"])
    described["created"] = datetime.fromtimestamp(described["created"], UTC).isoformat()
    return JSONResponse(described, headers={**_SAFE, "Cache-Control": "no-store"})


async def _cancel(request: Request) -> Response:
    request_id = request.path_params["request_id"]
    api_of(request).generator.calls.cancel(request_id)
    body: Cancelled = {"request_id": request_id, "cancelled": True}
    return JSONResponse(body)
