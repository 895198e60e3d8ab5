"""Without Gradio, or with SDXL_UI=false, there still is a page."""

from __future__ import annotations

import httpx

from tests.support.server import Server


def test_a_plain_page_takes_its_place(faked: Server) -> None:
    page = httpx.get(faked.url + "/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "./generate/stream" in page.text
    assert httpx.get(faked.url + "/ui/").status_code == 404
