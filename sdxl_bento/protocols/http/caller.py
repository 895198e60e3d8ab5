"""The client of one request: its id, how much it may send, and whether it is still connected."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from sdxl_bento import errors
from sdxl_bento.protocols.http.errors import BodyTooLarge

T = TypeVar("T")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's `X-Request-Id`, or a new one. Raises InvalidInput if it has other characters."""
    request_id = headers.get("x-request-id")
    if request_id is None:
        return secrets.token_hex(12)
    if not _REQUEST_ID.match(request_id):
        raise errors.InvalidInput(
            "X-Request-Id",
            request_id,
            "1 to 128 letters, digits, dots, colons, dashes, underscores",
        )
    return request_id


def known_request_id(headers: Mapping[str, str]) -> str | None:
    """The caller's `X-Request-Id` if it may be one, for answers that do not fail because of it."""
    request_id = headers.get("x-request-id", "")
    return request_id if _REQUEST_ID.match(request_id) else None


def declared_length(headers: Mapping[str, str]) -> int | None:
    """The `Content-Length`, None if there is none that a server would take."""
    digits = headers.get("content-length", "")
    return int(digits) if len(digits) <= 20 and digits.isascii() and digits.isdigit() else None


def limited(request: Request, max_bytes: int) -> Request:
    """The same request, but reading more than `max_bytes` of its body raises BodyTooLarge."""
    allowed = f"at most {max_bytes} bytes"
    declared = declared_length(request.headers)
    if declared is not None and declared > max_bytes:
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


async def whole_body(request: Request) -> bytes:
    """The body. Unlike Starlette's `body()` it does not copy one that comes in one piece."""
    pieces = [piece async for piece in request.stream() if piece]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Caller:
    """The client that waits for an answer. Create it after its request's body has been read."""

    def __init__(self, receive: Receive) -> None:
        # The task ends by itself: a server reports a disconnect after a complete response too.
        self._left = asyncio.create_task(_until_disconnect(receive))

    async def wait_for(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run `work`. Cancel it if the client disconnects or the time is over.

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
