"""What reaches Gradio: bodies that it can read in the event loop, requests that it can answer."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_bento.protocols.http.bodies import MAX_JSON_BYTES, MAX_UPLOAD_BYTES, read_json
from sdxl_bento.protocols.http.caller import limited, whole_body
from sdxl_bento.protocols.http.errors import MalformedBody, MalformedRequest
from sdxl_bento.protocols.http.multipart import BrokenForm, boundary_of, parts_of
from sdxl_bento.protocols.http.off_loop import off_loop

logger = logging.getLogger(f"bentoml.{__name__}")

MAX_BODY = MAX_UPLOAD_BYTES + (1 << 20)  # an upload and the form around it
_PIECE = 32 << 10


async def checked(scope: Scope, receive: Receive, is_upload: bool) -> tuple[Scope, Receive]:
    """The request, with a body that has been read and checked.

    Raises BodyTooLarge, MalformedBody, or InvalidInput for a number that is too long.
    """
    request = limited(Request(scope, receive), MAX_BODY if is_upload else MAX_JSON_BYTES)
    body = await whole_body(request)
    if not is_upload:
        await off_loop(len(body), read_json, body)
        return scope, _again(body, receive)
    content_type = Headers(scope=scope).get("content-type", "")
    try:
        boundary = boundary_of(content_type)
        await off_loop(len(body), parts_of, body, boundary, MAX_JSON_BYTES)
    except BrokenForm as error:
        raise MalformedBody("body", "a form", f"multipart/form-data; {error}") from None
    copy = {**scope, "headers": list(scope["headers"])}
    # Without a charset: Gradio would use any codec that it names.
    plain = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"'
    MutableHeaders(scope=copy)["content-type"] = plain
    return copy, _again(body, receive)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` with the body in pieces, so that its reader lets others run in between."""
    place = 0
    complete = False

    async def again() -> Message:
        nonlocal place, complete
        if complete:
            return await receive()
        await asyncio.sleep(0)
        piece = body[place : place + _PIECE]
        place += _PIECE
        complete = place >= len(body)
        return {"type": "http.request", "body": piece, "more_body": not complete}

    return again


def is_plausible(path: str) -> bool:
    """Whether a path can be one of the page's files: the file system takes no other."""
    return "\0" not in path and all(len(part.encode()) <= 255 for part in path.split("/"))


async def answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let Gradio answer. Where it fails by what a request holds, MalformedRequest is raised.

    The page's handlers do not run within these requests, so their errors are none of these.
    """
    failed = False

    async def hold(message: Message) -> None:
        nonlocal failed
        failed = failed or message.get("status", 200) >= 500
        if not failed:
            await send(message)

    try:
        await app(scope, receive, hold)
    except Exception as error:
        if not failed:  # an answer has begun
            raise
        logger.warning("Gradio failed with %s at a request", type(error).__name__)
    if failed:
        raise MalformedRequest("body", "something else", "what the page's own script sends")
