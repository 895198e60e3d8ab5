"""Gradio's page as an ASGI app: made when it is asked for, no wider than needed, ended in time.

Importing Gradio takes seconds and a hundred megabytes, so a server whose page nobody opens does
without; it happens in a thread, and probes and calls are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import tempfile
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from sdxl_bento.protocols.http.caller import limited
from sdxl_bento.ui.pages import waiting_page
from sdxl_bento.ui.uploads import check_room

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.protocols.http.api import API

logger = logging.getLogger(f"bentoml.{__name__}")

MAX_BODY = 33 << 20  # bytes: an upload of 32 MiB, and what is around it in the form
# How many pages can be open beside all other calls: each holds a connection.
PAGES = 512

# What the page's script asks for. Gradio has more: files, proxies, the app's own code, monitoring.
_WANTED = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/(assets|static|svelte)/.*"
        r"|/gradio_api/(queue/data|heartbeat/\w+|startup-events|upload_progress|theme\.css)/?"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|upload|cancel|reset)/?"),
}
_WANTED["HEAD"] = _WANTED["GET"]
_PREFIX = re.compile(r"(/[\w.~-]+)+")
# A browser asks nobody else for anything. Gradio's templates are functions made of text.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; form-action 'none'"
)


def has_page(settings: Settings) -> bool:
    """Whether this service shows Gradio's page; the log says why, where one would expect it."""
    if not settings.ui or find_spec("gradio") is None:
        return False
    if settings.workers > 1:
        # Gradio keeps a visit in its process, and each request may reach another one.
        logger.info("the page at / is the plain one: Gradio's cannot have SDXL_WORKERS above 1")
        return False
    return True


class Page:
    """The app to mount at `PATH`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted = asyncio.Event()
        self._made = asyncio.Event()
        self._app: Any = None
        self._open = AsyncExitStack()
        self._folder = Path()

    async def serve(self, api: API) -> None:
        """Make the page once it is asked for."""
        await self._wanted.wait()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="sdxl-bento-ui-"))
            self._open.callback(shutil.rmtree, self._folder, ignore_errors=True)
            # For uploads; read when Gradio is imported.
            os.environ["GRADIO_TEMP_DIR"] = str(self._folder)
            parent = await asyncio.to_thread(_make, api, self._settings)
            await self._open.enter_async_context(parent.router.lifespan_context(parent))
            self._app = parent.routes[-1].app
        except Exception:
            logger.exception("the page could not be made")
        finally:
            self._made.set()

    def close(self) -> None:
        """End what open pages hold, else the server would wait for them."""
        if self._app is not None:
            self._app.stop_event.set()

    async def aclose(self) -> None:
        """End the page; what was uploaded is removed."""
        await self._open.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request below `PATH`, which is the scope's `root_path`.

        Raises BodyTooLarge, and Overloaded for an upload that there is no room for.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        wanted = _WANTED.get(scope.get("method", ""))
        if wanted is None or not wanted.fullmatch(path):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        self._wanted.set()
        if path != "/":
            await self._made.wait()
        if scope["method"] == "POST":
            receive = limited(Request(scope, receive), MAX_BODY).receive
            if path.startswith("/gradio_api/upload"):
                await asyncio.to_thread(check_room, self._folder)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        if self._app is not None:
            await self._app(_behind_proxy(scope), receive, guarded)
        elif self._made.is_set():
            await PlainTextResponse("The page could not be made.", 503)(scope, receive, guarded)
        else:
            await waiting_page()(scope, receive, guarded)


def _behind_proxy(scope: Scope) -> Scope:
    """The scope with the prefix that a proxy has taken off: Gradio writes whole addresses."""
    prefix = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        return scope
    root, path = prefix + scope.get("root_path", ""), prefix + scope["path"]
    return {**scope, "root_path": root, "path": path, "raw_path": path.encode()}


def _make(api: API, settings: Settings) -> Any:
    """Starlette's app with Gradio's mounted in it."""
    from sdxl_bento.ui.blocks import mounted

    return mounted(api, settings)
