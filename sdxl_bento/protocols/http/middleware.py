"""ASGI middleware that gives every error the body of its route's protocol."""

from __future__ import annotations

import json
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_bento.protocols.http.caller import known_request_id
from sdxl_bento.protocols.http.envelopes import envelope_of
from sdxl_bento.protocols.http.errors import (
    MAX_MESSAGE_CHARS,
    ErrorDetail,
    error_response,
    logged,
)
from sdxl_bento.protocols.http.no_route import no_route

# The `type` of errors that were not raised by this package, by their status.
_TYPES = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
    415: "unsupported_body",
    429: "overloaded",
    503: "unavailable",
    504: "timeout_error",
}
_NO_ROUTE = b"Not Found"  # all that Starlette's router answers
# Statuses that tell a client to come again. BentoML's own answers do not say when.
_RETRIED = (429, 503)


class ErrorBodies:
    """ASGI middleware that gives every error, also BentoML's and Starlette's, its route's body.

    An address that nobody knows does not reach our app, so BentoML's answer gets its message here.

    Args:
        known: the addresses to point to.
    """

    def __init__(self, app: ASGIApp, known: Collection[str] = ()) -> None:
        self.app = app
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = known_request_id(Headers(scope=scope))
        start: Message | None = None
        chunks: list[bytes] = []

        async def reshape(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
                return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(chunks)
                if start["status"] == 404 and body == _NO_ROUTE:
                    body = no_route(scope["method"], scope["path"], self._known).encode()
                await _send_error(send, start, body, request_id, scope["path"])

        await self.app(scope, receive, reshape)


class Failures:
    """ASGI middleware that answers and logs every exception that comes out of the routes.

    BentoML's `TimeoutMiddleware` would wait for an answer until its time is over.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = complete = False

        async def note(message: Message) -> None:
            nonlocal started, complete
            started = True
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            request_id = known_request_id(Headers(scope=scope))
            logged(error, request_id or "without an id")
            if not started:
                await error_response(error, request_id)(scope, receive, send)
            elif not complete:
                raise


async def _send_error(
    send: Send, start: Message, body: bytes, request_id: str | None, path: str
) -> None:
    """Send the response that begins with `start`, with its body in the envelope of `path`."""
    status: int = start["status"]
    detail = _our_detail(body) or _detail_for(status, body, request_id)
    data = json.dumps(envelope_of(path)(detail, status)).encode()
    replaced = (b"content-length", b"content-type")
    headers = [(key, value) for key, value in start["headers"] if key.lower() not in replaced]
    if status in _RETRIED and all(key.lower() != b"retry-after" for key, _ in headers):
        headers.append((b"retry-after", b"1"))
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _detail_for(status: int, body: bytes, request_id: str | None) -> ErrorDetail:
    """What can be said of an error that BentoML or Starlette has answered."""
    message = _message_in(body) or HTTPStatus(status).phrase
    return {
        "type": _TYPES.get(status, "internal_error" if status >= 500 else "invalid_input"),
        "message": message[:MAX_MESSAGE_CHARS],
        "field": None,
        "value": None,
        "allowed": None,
        "request_id": request_id,
    }


def _our_detail(body: bytes) -> ErrorDetail | None:
    """The detail in a body of ours, also if BentoML has wrapped that as its error's message."""
    content = _json(body)
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = _json(str(content[0].get("error", "")).encode())
    detail = content.get("error") if isinstance(content, dict) else None
    return cast(ErrorDetail, detail) if isinstance(detail, dict) else None


def _message_in(body: bytes) -> str:
    """The message of an error's body, whoever has written it; empty if there is none."""
    content = _json(body)
    if isinstance(content, list) and content:
        content = content[0]
    if isinstance(content, dict):
        return str(content.get("error") or content.get("detail") or "")
    return "" if content is not None else body.decode("utf-8", "replace").strip()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
