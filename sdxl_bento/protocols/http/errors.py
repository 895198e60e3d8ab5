"""HTTP in one place: which error is which status, how a body is read, when a caller has left.

Every error that a client sees has this body, whichever route it came from, or what `envelopes`
makes of it for the route's protocol:

    {"error": {"type", "message", "field", "value", "allowed", "request_id"}}

409, not nginx's 499, is the answer to a cancelled request: clients which build an
`http.HTTPStatus` from the code (BentoML's own does) fail on an unregistered number.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_bento import errors
from sdxl_bento.pictures.encode import ImageTooLarge
from sdxl_bento.protocols.http.envelopes import envelope_of

T = TypeVar("T")

MAX_MESSAGE_CHARS = 2_000
_MAX_VALUE_CHARS = 200
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


class MalformedBody(errors.InvalidInput):
    """The body is not what its content type says: JSON that does not parse, a broken form."""


class UnsupportedBody(errors.InvalidInput):
    """The body's content type is none that this route reads."""


class BodyTooLarge(errors.InvalidInput):
    """The body, or the picture in it, is larger than this server takes."""


class CrossOrigin(errors.InvalidInput):
    """A page of another site has sent this: see `cross_origin`."""


STATUS: Mapping[type[Exception], HTTPStatus] = {
    MalformedBody: HTTPStatus.BAD_REQUEST,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    CrossOrigin: HTTPStatus.FORBIDDEN,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DeadlineInfeasible: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestCancelled: HTTPStatus.CONFLICT,
    errors.EngineDead: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SDXLError: HTTPStatus.INTERNAL_SERVER_ERROR,
    TimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    Exception: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_FIELDS: Mapping[type[errors.NotFound], str] = {
    errors.ModelNotFound: "model",
    errors.AdapterNotFound: "loras",
    errors.ImageNotFound: "image_id",
    errors.RequestNotFound: "request_id",
}
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


def status_of(error: Exception) -> HTTPStatus:
    """The status of an error: that of its nearest class in `STATUS`."""
    return status_of_class(type(error))


def status_of_class(error: type[Exception]) -> HTTPStatus:
    """The status of the errors of a class."""
    return next(STATUS[cls] for cls in error.__mro__ if cls in STATUS)


def error_body(error: Exception, request_id: str | None = None) -> dict[str, Any]:
    """The `{"error": …}` body of an exception. The text of an unexpected one stays in the log."""
    body: dict[str, Any] = {"type": _snake(type(error).__name__), "message": str(error)}
    if not isinstance(error, (errors.SDXLError, TimeoutError)):
        body = {"type": "internal_error", "message": "an unexpected error; the server's log has it"}
    body["message"] = body["message"][:MAX_MESSAGE_CHARS]
    body |= {"field": None, "value": None, "allowed": None}
    if isinstance(error, errors.InvalidInput):
        body |= {"field": error.field, "value": _shown(error.value), "allowed": error.allowed}
    elif isinstance(error, errors.NotFound):
        allowed = f"one of: {', '.join(error.available)}" if error.available else None
        body |= {"field": _FIELDS.get(type(error)), "value": _shown(error.name), "allowed": allowed}
    elif isinstance(error, errors.Refused):
        body["retry_after_s"] = round(error.retry_after_s, 3)
    return {"error": body | {"request_id": request_id}}


def error_headers(error: Exception) -> dict[str, str]:
    """`Retry-After` in whole seconds, at least one, for what is worth trying again."""
    if isinstance(error, errors.Refused):
        return {"Retry-After": str(max(1, round(error.retry_after_s + 0.499)))}
    return {}


def error_response(error: Exception, request_id: str | None = None) -> JSONResponse:
    """The whole answer to a call that failed with `error`."""
    headers = error_headers(error)
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    return JSONResponse(error_body(error, request_id), status_of(error), headers)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's `X-Request-Id`, or a new one. Raises InvalidInput for one that is no token."""
    given = headers.get("x-request-id")
    if given is None:
        return secrets.token_hex(12)
    if not _REQUEST_ID.match(given):
        raise errors.InvalidInput(
            "X-Request-Id", given, "1 to 128 letters, digits, dots, colons, dashes, underscores"
        )
    return given


def limited(request: Request, max_bytes: int) -> Request:
    """The same request, but reading more than `max_bytes` of its body raises BodyTooLarge."""
    allowed = f"at most {max_bytes} bytes"
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge("body", f"{declared} bytes", allowed)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise BodyTooLarge("body", f"over {max_bytes} bytes", allowed)
        return message

    return Request(request.scope, receive)


class Caller:
    """The client at the other end. Make one only when its request's body has been read."""

    def __init__(self, receive: Receive) -> None:
        # It ends by itself: a server reports a disconnect once the response is complete, too.
        self._left = asyncio.create_task(_until_disconnect(receive))

    async def wait_for(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run `work`; cancel it when the client leaves or the time is over.

        Raises RequestCancelled or TimeoutError for these two.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait(
                {task, self._left}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if self._left.done():
                raise errors.RequestCancelled("the client closed the connection")
            raise TimeoutError(f"not done within {timeout_s:g} seconds, so it was cancelled")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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


def _shown(value: object) -> object:
    """The caller's value as JSON can hold it, cut short."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
