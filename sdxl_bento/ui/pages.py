"""The page that needs nothing beside the server, and the one with the API."""

from __future__ import annotations

from functools import cache
from importlib import resources

from starlette.responses import HTMLResponse

# The page holds its own style and script; nothing else may run in it, and nothing may frame it.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


def front_page() -> HTMLResponse:
    """The page at `/`, unless Gradio's is there."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_read("index.html"), headers=headers)


def waiting_page() -> HTMLResponse:
    """What is shown while Gradio's page is being made; it looks again by itself."""
    return HTMLResponse(_read("waiting.html"), headers={"Cache-Control": "no-store"})


def api_page() -> HTMLResponse:
    """Swagger UI, from the files that BentoML brings along."""
    return HTMLResponse(_read("docs.html"))


@cache
def _read(name: str) -> str:
    return resources.files("sdxl_bento").joinpath("static", name).read_text("utf-8")
