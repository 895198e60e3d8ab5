"""The pages that need no Gradio: the plain page, the one with the API, the waiting page."""

from __future__ import annotations

from functools import cache
from importlib import resources

from starlette.responses import HTMLResponse

# The page has its style and script inline. It may load nothing else, and no page may frame it.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


def front_page() -> HTMLResponse:
    """The page at `/` of a service without Gradio's page."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_read("index.html"), headers=headers)


def waiting_page() -> HTMLResponse:
    """The page to show while Gradio's is being built. It reloads itself."""
    return HTMLResponse(_read("waiting.html"), headers={"Cache-Control": "no-store"})


def api_page() -> HTMLResponse:
    """Swagger UI, from the files in BentoML's package."""
    return HTMLResponse(_read("docs.html"))


@cache
def _read(name: str) -> str:
    return resources.files("sdxl_bento").joinpath("static", name).read_text("utf-8")
