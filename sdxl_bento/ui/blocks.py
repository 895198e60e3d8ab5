"""Gradio's app with its elements, handlers and options."""

from __future__ import annotations

from functools import cache
from importlib import resources

import gradio as gr
from starlette.applications import Starlette

from sdxl_bento.config import Settings
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import MAX_UPLOAD_BYTES
from sdxl_bento.ui.constants import CACHE_S, PATH
from sdxl_bento.ui.events import Events
from sdxl_bento.ui.failures import log_failures
from sdxl_bento.ui.layout import build
from sdxl_bento.ui.theme import theme

_TITLE = "sdxl-bento"
_HEAD = '<link rel="icon" href="data:,"><meta name="color-scheme" content="light dark">'


def mounted(api: API, settings: Settings) -> Starlette:
    """An app with only the page in it. Its lifespan starts and stops the page."""
    log_failures()
    with gr.Blocks(
        title=_TITLE, analytics_enabled=False, delete_cache=(CACHE_S // 12, CACHE_S)
    ) as blocks:
        Events(api, build(settings)).connect(blocks)
    blocks.queue(api_open=False, max_size=None, default_concurrency_limit=None)
    parent = Starlette()
    gr.mount_gradio_app(  # its type says FastAPI, but any app with `mount` will do
        parent,
        blocks,
        PATH,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=MAX_UPLOAD_BYTES,
        theme=theme(),
        css=_read("page.css"),
        js=_read("page.js"),
        head=_HEAD,
    )
    return parent


@cache
def _read(name: str) -> str:
    return resources.files("sdxl_bento").joinpath("static", name).read_text("utf-8")
