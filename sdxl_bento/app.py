"""The Starlette app beside BentoML's own routes: pages, lists, and the calls of other protocols.

BentoML itself only routes POST requests to the methods of a service.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sdxl_bento.config import Settings
from sdxl_bento.errors import SDXLError
from sdxl_bento.protocols import openapi
from sdxl_bento.protocols.a1111 import routes as a1111
from sdxl_bento.protocols.http.bodies import MAX_BATCH_BYTES, MAX_JSON_BYTES, MAX_UPLOAD_BYTES
from sdxl_bento.protocols.http.caller import known_request_id
from sdxl_bento.protocols.http.errors import error_response
from sdxl_bento.protocols.http.gate import Gate
from sdxl_bento.protocols.http.incoming import BodyMemory
from sdxl_bento.protocols.http.masking import Labels
from sdxl_bento.protocols.http.no_route import no_such_route
from sdxl_bento.protocols.kserve.v1 import routes as kserve_v1
from sdxl_bento.protocols.kserve.v2 import repository
from sdxl_bento.protocols.kserve.v2 import routes as kserve_v2
from sdxl_bento.protocols.native import lookups
from sdxl_bento.protocols.openai import routes as openai
from sdxl_bento.serving.metrics import metrics
from sdxl_bento.ui import api_page, front_page
from sdxl_bento.ui.page import Page
from sdxl_bento.ui.posts import MAX_BODY

# The routes whose bodies may be larger than `MAX_JSON_BYTES`.
BODY_LIMITS = {
    **dict.fromkeys(("/img2img", "/refine"), MAX_UPLOAD_BYTES),
    **dict.fromkeys(("/v1/images/edits", "/sdapi/v1/img2img"), MAX_UPLOAD_BYTES),
    **dict.fromkeys(("/generate_batch", "/v1/models/{model}:predict"), MAX_BATCH_BYTES),
    **dict.fromkeys(
        ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"),
        MAX_BATCH_BYTES,
    ),
    "/ui": MAX_BODY,
}
_OF_BENTOML = ("/livez", "/readyz", "/healthz", "/metrics", "/schema.json")


def web_app() -> Starlette:
    """The app. Set `state.api` and `state.page` before its first request. `page` may be None."""
    routes = [
        Route("/", _front_page, name="page"),
        Mount("/ui", _gradio_page, name="ui"),
        Route("/docs", _api_page, name="docs"),
        Route("/docs.json", _openapi),
        *lookups.routes(),
        *kserve_v1.routes(),
        *kserve_v2.routes(),
        *repository.routes(),
        *openai.routes(),
        *a1111.routes(),
    ]
    handlers = {SDXLError: _failed, 404: no_such_route, 405: no_such_route}
    return Starlette(routes=routes, exception_handlers=handlers)


def gate_around(app: ASGIApp, web: Starlette, methods: Iterable[str], settings: Settings) -> Gate:
    """The outermost part of the service. `methods` are the routes of the service's methods."""
    return Gate(
        app,
        Labels(web.routes, (*_OF_BENTOML, *methods)),
        BODY_LIMITS,
        default_limit=MAX_JSON_BYTES,
        timeout_s=settings.receive_timeout_s,
        memory=BodyMemory(settings.max_bodies_mb << 20),
        count=metrics().turned_away,
    )


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


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(error, known_request_id(request.headers))
