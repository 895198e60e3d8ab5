"""The routes that are not calls of the model: the page, the lists, stored pictures, the API page.

BentoML routes only POST to a service's methods, so these are a Starlette app beside them.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from sdxl_bento.errors import SDXLError
from sdxl_bento.protocols import model_lists as v1_models
from sdxl_bento.protocols import openapi
from sdxl_bento.protocols.a1111 import routes as a1111
from sdxl_bento.protocols.http.errors import error_response
from sdxl_bento.protocols.kserve.v1 import routes as kserve
from sdxl_bento.protocols.kserve.v2 import repository
from sdxl_bento.protocols.kserve.v2 import routes as open_inference
from sdxl_bento.protocols.native.routes import NativeAPI
from sdxl_bento.protocols.openai import routes as openai
from sdxl_bento.ui import api_page, front_page
from sdxl_bento.ui.page import Page

# What a browser may do with a picture or page of ours.
_SAFE = {"X-Content-Type-Options": "nosniff"}


def web_app() -> Starlette:
    """The app. `state.native` and `state.page`, which may be None, have to be set first."""
    routes = [
        Route("/", _front_page, name="page"),
        Mount("/ui", _gradio_page, name="ui"),
        Route("/docs", _api_page, name="docs"),
        Route("/docs.json", _openapi),
        Route("/models", _models),
        Route("/loras", _loras),
        Route("/samplers", _samplers),
        Route("/stats", _stats),
        Route("/images/{image_id}", _image),
        Route("/images/{image_id}/metadata", _metadata),
        Route("/download/{image_id}", _download),
        Route("/cancel/{request_id}", _cancel, methods=["POST"]),
        *kserve.routes(),
        *v1_models.routes(),
        *open_inference.routes(),
        *repository.routes(),
        *openai.routes(),
        *a1111.routes(),
    ]
    return Starlette(routes=routes, exception_handlers={SDXLError: _failed})


async def _front_page(request: Request) -> Response:
    browser = "text/html" in request.headers.get("accept", "")
    if browser and request.app.state.page is not None:
        return RedirectResponse("ui/")  # relative: a proxy may have its own prefix
    return front_page()


async def _gradio_page(scope: Scope, receive: Receive, send: Send) -> None:
    page: Page | None = scope["app"].state.page
    if page is None:
        raise HTTPException(404)
    await page(scope, receive, send)


async def _api_page(request: Request) -> Response:
    return api_page()


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi.document())


async def _models(request: Request) -> Response:
    return JSONResponse({"models": [asdict(model) for model in _api(request).generator.models()]})


async def _loras(request: Request) -> Response:
    return JSONResponse({"loras": [asdict(lora) for lora in _api(request).generator.loras()]})


async def _samplers(request: Request) -> Response:
    return JSONResponse({"samplers": list(_api(request).generator.samplers())})


async def _stats(request: Request) -> Response:
    generator = _api(request).generator
    state = {"state": generator.state, "state_reason": generator.state_reason}
    return JSONResponse({**state, **generator.stats()})


async def _image(request: Request) -> Response:
    return await _stored(request, "inline")


async def _download(request: Request) -> Response:
    return await _stored(request, "attachment")


async def _stored(request: Request, disposition: str) -> Response:
    # A file name is taken, too, so that a link can end in .png.
    image_id = request.path_params["image_id"].partition(".")[0]
    image = await _api(request).pictures.get(image_id)
    headers = {
        **_SAFE,
        "Content-Disposition": f'{disposition}; filename="{image_id}.{image.output_format}"',
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Image-Id": image.image_id,
        "X-Seed": str(image.metadata["params"]["seed"]),
    }
    return Response(image.data, headers=headers, media_type=image.media_type)


async def _metadata(request: Request) -> Response:
    described = await _api(request).pictures.describe(request.path_params["image_id"])
    described["created"] = datetime.fromtimestamp(described["created"], UTC).isoformat()
    return JSONResponse(described, headers={**_SAFE, "Cache-Control": "no-store"})


async def _cancel(request: Request) -> Response:
    request_id = request.path_params["request_id"]
    _api(request).generator.cancel(request_id)
    return JSONResponse({"request_id": request_id, "cancelled": True})


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(error, request.headers.get("x-request-id"))


def _api(request: Request) -> NativeAPI:
    native: NativeAPI = request.app.state.native
    return native
