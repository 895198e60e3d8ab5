"""One answer for all who ask for the same at the same time."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Shared:
    """ASGI middleware for one address, whose answer is the same for all callers.

    A scrape of `/metrics` takes tenths of a second. Whoever asks while one is being made gets that
    one, so that a hundred at once cost what one costs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._running: asyncio.Task[list[Message]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._running is None:
            self._running = asyncio.create_task(self._answer(scope))
            self._running.add_done_callback(self._end)
        for message in await asyncio.shield(self._running):
            await send(message)

    async def _answer(self, scope: Scope) -> list[Message]:
        """The messages of the answer, made for nobody in particular."""
        messages: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        return messages

    def _end(self, task: asyncio.Task[list[Message]]) -> None:
        self._running = None
