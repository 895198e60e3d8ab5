"""OpenAI's image routes: /v1/images/generations and /v1/images/edits. See docs/guides/openai.md."""

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
from sdxl_bento.protocols.openai.answers import failed, response_body
from sdxl_bento.protocols.openai.fields import Wish, translated
from sdxl_bento.protocols.openai.stream import stream

PROTOCOL = "openai"
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}\Z")


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [
        Route("/v1/images/generations", _generations, methods=["POST"]),
        Route("/v1/images/edits", _edits, methods=["POST"]),
    ]


async def _generations(request: Request) -> Response:
    return await _answer(request, "generate", MAX_JSON_BYTES)


async def _edits(request: Request) -> Response:
    return await _answer(request, "img2img", MAX_UPLOAD_BYTES)


async def _answer(request: Request, task: Task, max_bytes: int) -> Response:
    api = api_of(request)
    call, wish = _translated(await read_call(request, max_bytes), task)
    if wish.stream:
        return await stream(api, call, task, wish)
    try:
        answer = await api.run(call, task)
    except Exception as error:  # whatever it is, the client gets our error body
        return failed(error, call, wish.names)
    url = f"{_address(request)}/images" if wish.as_url else None
    return JSONResponse(response_body(answer, url), headers=answer_headers(answer))


def _translated(arrived: Call, task: Task) -> tuple[Call, Wish]:
    """The call in native fields. What is wrong with it is its `error`."""
    call = replace(arrived, protocol=PROTOCOL)
    if call.error is not None:
        return call, Wish()
    try:
        fields, wish = translated(call.fields, task)
    except SDXLError as error:
        return replace(call, error=error), Wish()
    return replace(call, fields=fields), wish


def _address(request: Request) -> str:
    """This server's URL as its clients know it, also behind a proxy that says what that is."""
    scheme, host = request.url.scheme, request.url.netloc
    proto = _first(request.headers.get("x-forwarded-proto", "")).lower()
    forwarded = _first(request.headers.get("x-forwarded-host", ""))
    scheme = proto if proto in ("http", "https") else scheme
    return f"{scheme}://{forwarded if _HOST.match(forwarded) else host}"


def _first(header: str) -> str:
    return header.split(",")[0].strip()
