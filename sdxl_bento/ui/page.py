"""Gradio's page as an ASGI app: built on the first visit, with as few routes as possible.

Importing Gradio takes seconds and a hundred megabytes, so a server does it only if somebody opens
the page. It does it in a thread and goes on answering probes and calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from sdxl_bento import scratch
from sdxl_bento.ui.pages import waiting_page
from sdxl_bento.ui.posts import answered, checked, is_plausible
from sdxl_bento.ui.uploads import check_room

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.protocols.http.api import API

logger = logging.getLogger(f"bentoml.{__name__}")

# How many pages can be open at once, each of which holds a connection, beside all other calls.
PAGES = 512

# The routes that the page's script uses. Gradio's others, for files, proxies, the app's source code
# and monitoring, cannot be reached.
_WANTED = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/(assets|static|svelte)/.*"
        r"|/gradio_api/(queue/data|heartbeat/\w+|startup-events|upload_progress|theme\.css)/?"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|upload|cancel|reset)/?"),
}
_WANTED["HEAD"] = _WANTED["GET"]
_PREFIX = re.compile(r"(/[\w.~-]+)+")
# Everything comes from this server. Gradio builds functions from text, hence 'unsafe-eval'.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; form-action 'none'"
)


def has_page(settings: Settings) -> bool:
    """Whether this service shows Gradio's page. If SDXL_WORKERS prevents it, the log says so."""
    if not settings.ui or find_spec("gradio") is None:
        return False
    if settings.workers > 1:
        # Gradio keeps a visit in one process, and each request may reach another process.
        logger.info("the page at / is the plain one: Gradio's cannot have SDXL_WORKERS above 1")
        return False
    return True


class Page:
    """The app to mount at `PATH`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._visited = asyncio.Event()
        self._built = asyncio.Event()
        self._app: Any = None
        self._open = AsyncExitStack()
        self._folder = Path()

    async def serve(self, api: API) -> None:
        """Build the page on the first visit."""
        await self._visited.wait()
        try:
            self._folder = scratch.make("ui")
            self._open.callback(shutil.rmtree, self._folder, ignore_errors=True)
            # The folder for uploads. Gradio reads the variable when it is imported.
            os.environ["GRADIO_TEMP_DIR"] = str(self._folder)
            parent = await asyncio.to_thread(_build, api, self._settings)
            await self._open.enter_async_context(parent.router.lifespan_context(parent))
            self._app = parent.routes[-1].app
        except Exception:
            logger.exception("the page could not be made")
        finally:
            self._built.set()

    def close(self) -> None:
        """End the streams of open pages, which the server would otherwise wait for."""
        if self._app is not None:
            self._app.stop_event.set()

    async def aclose(self) -> None:
        """Stop the page and remove all uploads."""
        await self._open.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request below `PATH`, which is the scope's `root_path`.

        Raises what `posts.checked` raises, and Overloaded if there is no room for an upload.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        wanted = _WANTED.get(scope.get("method", ""))
        if wanted is None or not wanted.fullmatch(path) or not is_plausible(path):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        self._visited.set()
        if path != "/":
            await self._built.wait()
        if scope["method"] == "POST":
            is_upload = path.startswith("/gradio_api/upload")
            scope, receive = await checked(scope, receive, is_upload)
            if is_upload:
                await asyncio.to_thread(check_room, self._folder)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        if self._app is not None:
            await answered(self._app, _behind_proxy(scope), receive, send_with_policy)
        elif self._built.is_set():
            await PlainTextResponse("The page could not be made.", 503)(
                scope, receive, send_with_policy
            )
        else:
            await waiting_page()(scope, receive, send_with_policy)


def _behind_proxy(scope: Scope) -> Scope:
    """The scope with the prefix that a proxy has removed: Gradio writes absolute addresses."""
    prefix = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        return scope
    root, path = prefix + scope.get("root_path", ""), prefix + scope["path"]
    return {**scope, "root_path": root, "path": path, "raw_path": path.encode()}


def _build(api: API, settings: Settings) -> Any:
    """Starlette's app with Gradio's mounted in it. It is here that gradio is imported."""
    from sdxl_bento.ui.blocks import mounted

    return mounted(api, settings)
