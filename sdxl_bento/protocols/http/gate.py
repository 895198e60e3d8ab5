"""The outermost part of the service: what reaches BentoML is complete, bounded and anonymous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdxl_bento.errors import SDXLError
from sdxl_bento.protocols.http.caller import declared_length, known_request_id
from sdxl_bento.protocols.http.errors import (
    BodyTimeout,
    BodyTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    TooManyConnections,
    error_response,
)
from sdxl_bento.protocols.http.heads import METHODS, check_head
from sdxl_bento.protocols.http.incoming import BodyMemory, CallerLeft, Incoming, too_large
from sdxl_bento.protocols.http.masking import Labels, masked
from sdxl_bento.protocols.http.middleware import ErrorBodies
from sdxl_bento.protocols.http.shared import Shared

# The methods whose body is read. That of another request is no part of it (RFC 9110, 9.3.1).
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
# After a refusal, so much of the rest is read that most clients see the answer before the end of
# the connection, which would otherwise be reset.
_LINGER_S = 1.0
_LINGER_BYTES = 4 << 20
_SCRAPE = "/metrics"
_REASONS: Mapping[type[Exception], str] = {
    MalformedRequest: "malformed",
    BodyTooLarge: "too_large",
    BodyTimeout: "too_slow",
    TooManyConnections: "memory",
}


class Gate:
    """ASGI middleware around BentoML's own.

    It checks the head of a request, reads its body, and hides from BentoML's metrics and logs what
    the caller has written. All errors get the body of their route's protocol, those of BentoML's
    middleware too.

    Args:
        labels: names the routes, for metrics and logs.
        body_limits: the largest body of a route in bytes, by its label.
        default_limit: the largest body of every other route.
        timeout_s: seconds in which a body has to be complete.
        memory: bounds all bodies together.
        count: called with the reason for each request that is turned away.
    """

    def __init__(
        self,
        app: ASGIApp,
        labels: Labels,
        body_limits: Mapping[str, int],
        *,
        default_limit: int,
        timeout_s: float,
        memory: BodyMemory,
        count: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.app = app
        self._labels = labels
        self._body_limits = body_limits
        self._default_limit = default_limit
        self._timeout_s = timeout_s
        self._memory = memory
        self._count = count
        self._shared = Shared(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no route speaks it
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        incoming = self._memory.begin()
        try:
            answer = ErrorBodies(partial(self._answer, incoming), self._labels.plain)
            await answer(scope, receive, _lingering(incoming, receive, send))
        except CallerLeft:
            return
        finally:
            self._memory.end(incoming)

    async def _answer(self, incoming: Incoming, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_head(scope)
            label = self._labels.of(scope["path"])
            if scope["method"] in _WITH_BODY:
                receive = await self._read(incoming, scope, label, receive)
        except SDXLError as error:
            self._count(next(_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS))
            response = error_response(error, known_request_id(Headers(scope=scope)))
            response.headers["Connection"] = "close"
            if isinstance(error, MethodNotAllowed):
                response.headers["Allow"] = ", ".join(METHODS)
            await response(scope, receive, send)
            return
        app = self._shared if label == _SCRAPE else self.app
        await app(masked(scope, label), receive, send)

    async def _read(
        self, incoming: Incoming, scope: Scope, label: str, receive: Receive
    ) -> Receive:
        """Read the body. Returns a `receive` that has it as one message."""
        limit = self._body_limits.get(label, self._default_limit)
        declared = declared_length(Headers(scope=scope))
        if declared is not None and declared > limit:
            incoming.unread = True
            raise too_large(f"{declared} bytes", limit)
        body = await incoming.read(receive, limit, self._timeout_s)
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            first, message = message, None
            return first

        return replay


def _lingering(incoming: Incoming, receive: Receive, send: Send) -> Send:
    """A `send` that, before it ends a response, reads on for a moment if the body is unread."""

    async def send_and_linger(message: Message) -> None:
        ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (ends and incoming.unread):
            await send(message)
            return
        await send({**message, "more_body": True})
        seen = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while seen < _LINGER_BYTES:
                    rest = await receive()
                    seen += len(rest.get("body", b""))
                    if rest["type"] == "http.disconnect" or not rest.get("more_body", False):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_and_linger
