"""ASGI middleware that gives every error the body of its route's protocol."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_bento.protocols.http.envelopes import envelope_of
from sdxl_bento.protocols.http.errors import MAX_MESSAGE_CHARS

# Of answers that are not ours: our name of the error by its status.
_TYPES = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_body",
    429: "overloaded",
    503: "unavailable",
    504: "timeout_error",
}


class ErrorBodies:
    """ASGI middleware that gives all errors, BentoML's and Starlette's too, their route's body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id")
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
                await _send_error(send, start, b"".join(chunks), request_id, scope["path"])

        await self.app(scope, receive, reshape)


async def _send_error(
    send: Send, start: Message, body: bytes, request_id: str | None, path: str
) -> None:
    status: int = start["status"]
    ours = _our_body(body)
    if ours is None:
        name = _TYPES.get(status, "internal_error" if status >= 500 else "invalid_input")
        message = _message_in(body) or HTTPStatus(status).phrase
        fields = {"field": None, "value": None, "allowed": None, "request_id": request_id}
        ours = {"error": {"type": name, "message": message[:MAX_MESSAGE_CHARS], **fields}}
    data = json.dumps(envelope_of(path)(ours["error"], status)).encode()
    dropped = (b"content-length", b"content-type")
    headers = [(key, value) for key, value in start["headers"] if key.lower() not in dropped]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _our_body(body: bytes) -> dict[str, Any] | None:
    """The body, if it is ours already; also when BentoML has wrapped it as its error's message."""
    content = _json(body)
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = _json(str(content[0].get("error", "")).encode())
    if isinstance(content, dict) and isinstance(content.get("error"), dict):
        return content
    return None


def _message_in(body: bytes) -> str:
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
