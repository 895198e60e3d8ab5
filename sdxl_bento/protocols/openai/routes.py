"""OpenAI's image routes: /v1/images/generations and /v1/images/edits. See docs/guides/openai.md."""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import SDXLError
from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, Call, read_call
from sdxl_bento.protocols.native.routes import NativeAPI, answer_headers
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
    return await _answer(request, edited=False)


async def _edits(request: Request) -> Response:
    return await _answer(request, edited=True)


async def _answer(request: Request, *, edited: bool) -> Response:
    api: NativeAPI = request.app.state.native
    arrived = await read_call(request, MAX_UPLOAD_BYTES if edited else MAX_JSON_BYTES)
    call, wish = _understood(arrived, edited)
    work = api.image_to_image if edited else api.text_to_image
    if wish.stream:
        return await stream(api, call, work, wish, "image_edit" if edited else "image_generation")
    try:
        answer = await api.run(call, work(call))
    except Exception as error:  # whatever it is, the client gets our error body
        return failed(error, call, wish.names)
    url = f"{_address(request)}/images" if wish.as_url else None
    return JSONResponse(response_body(answer, url, edited), headers=answer_headers(answer))


def _understood(arrived: Call, edited: bool) -> tuple[Call, Wish]:
    """The call in native fields. What is wrong with it is its `error`."""
    if arrived.error is not None:
        return replace(arrived, protocol=PROTOCOL), Wish()
    try:
        fields, wish = translated(arrived.fields, with_picture=edited)
    except SDXLError as error:
        return replace(arrived, error=error, protocol=PROTOCOL), Wish()
    return replace(arrived, fields=fields, protocol=PROTOCOL), wish


def _address(request: Request) -> str:
    """This server's URL as its clients know it, also behind a proxy that says what that is."""
    scheme, host = request.url.scheme, request.url.netloc
    proto = _first(request.headers.get("x-forwarded-proto", "")).lower()
    forwarded = _first(request.headers.get("x-forwarded-host", ""))
    scheme = proto if proto in ("http", "https") else scheme
    return f"{scheme}://{forwarded if _HOST.match(forwarded) else host}"


def _first(header: str) -> str:
    return header.split(",")[0].strip()
