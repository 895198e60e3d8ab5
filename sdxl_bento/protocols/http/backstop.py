"""BentoML's time limit of a request, without what it leaves behind.

BentoML's own starts a timer for each request and never ends it. The timer keeps the request's
context and trace alive for as long as a request may take, which is ten minutes: after 60,000
requests these are 1.5 million objects, and each run of Python's garbage collector stops the server
for seconds.
"""

from __future__ import annotations

import asyncio

from bentoml._internal.server.http import traffic
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Backstop:
    """ASGI middleware that answers 504 if no answer has begun after `timeout` seconds."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self.app = app
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = asyncio.get_running_loop().create_future()

        async def note(message: Message) -> None:
            if not begun.done():
                begun.set_result(None)
            await send(message)

        task = asyncio.ensure_future(self.app(scope, receive, note))
        try:
            await asyncio.wait(
                {task, begun}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done() or begun.done():
                await task
                return
        finally:
            if not task.done():
                task.cancel()
        error = {"error": f"Not able to process the request in {self.timeout} seconds"}
        await JSONResponse(error, 504)(scope, receive, send)


def replace_timeouts() -> None:
    """Let BentoML use `Backstop` in the apps that it makes from now on."""
    traffic.__dict__["TimeoutMiddleware"] = Backstop
