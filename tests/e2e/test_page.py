"""Gradio's page as its visitors see it: a real server, the embedded model, a headless Chromium."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from export.embedded.checker import analyse
from tests.support.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
RED = "a red circle on a blue background"
# Notes everything the page has shown while it was drawing.
WATCH = """
window.shown = {words: new Set(), preview: false};
new MutationObserver(() => {
  const words = document.querySelector('.sb-status');
  if (words) window.shown.words.add(words.textContent);
  window.shown.preview ||= document.querySelector('img.sb-rough') !== null;
}).observe(document.body, {childList: true, subtree: true, characterData: true});
"""


class Visit:
    """One open page."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server

    def open(self) -> Visit:
        self.page.goto(self.server.url + "/")
        self.page.wait_for_selector(".sb-chips button")
        return self

    def ask(self, prompt: str, **values: object) -> Visit:
        """Fill the form: `size="96 x 96"`, and numbers by the name of their element."""
        self.page.fill("#sb-prompt textarea", prompt)
        for name, value in values.items():
            kind = "" if name in ("size", "seed") else "[type=number]"
            self.page.fill(f"#sb-{name} :is(input{kind}, textarea)", str(value))
            self.page.keyboard.press("Tab")
        return self

    def fix_seed(self, seed: int) -> Visit:
        self.page.uncheck("#sb-random input")
        self.page.wait_for_selector("#sb-seed")
        return self.ask(self.page.input_value("#sb-prompt textarea"), seed=seed)

    def press(self, name: str) -> Visit:
        self.page.click(f"#sb-{name}")
        return self

    def wait_for(self, drawn: int) -> Visit:
        """Until there are so many pictures."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.sb-gallery button').length === count"
            " && document.querySelector('#sb-draw') !== null",
            arg=drawn,
        )
        return self

    def wait_for_value(self, element: str, value: str) -> None:
        self.page.wait_for_function(
            "([selector, value]) => document.querySelector(selector)?.value === value",
            arg=[f"#sb-{element} :is(input, textarea)", value],
        )

    def picture(self) -> bytes:
        """The file that the page shows."""
        address = self.page.evaluate("document.querySelector('.sb-grid img').src")
        answer = httpx.get(address)
        assert answer.status_code == 200
        return answer.content

    def facts(self) -> dict[str, str]:
        """What the page says of the picture."""
        names = self.page.locator(".sb-facts dt").all_inner_texts()
        return dict(zip(names, self.page.locator(".sb-facts dd").all_inner_texts(), strict=True))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs what containers don't give to root.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Callable[..., Visit]]:
    """Opens pages in a browser that can reach the server alone."""
    strangers: list[str] = []
    broken: list[str] = []
    contexts = []

    def guard(route: Route) -> None:
        if route.request.url.startswith((server.url + "/", "data:", "blob:")):
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    def visit(**options: Any) -> Visit:
        context = browser.new_context(**options)
        context.set_default_timeout(40_000)
        context.route("**/*", guard)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: broken.append(str(error)))
        return Visit(page, server).open()

    yield visit
    for context in contexts:
        context.close()
    assert strangers == [], "the page asks others"
    assert broken == [], "the page's script fails"
    until(server, lambda stats: stats["running"] == stats["waiting"] == 0)


def until(server: Server, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for what the engine says of itself."""
    deadline = time.monotonic() + 60
    while not holds(stats := httpx.get(server.url + "/stats").json()):
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)


def seen(data: bytes) -> tuple[str | None, str | None, str]:
    found = analyse(Image.open(io.BytesIO(data)).convert("RGB"))
    return found.colour, found.shape, found.background


def test_it_draws_and_shows_how_far_it_is(visitor: Callable[..., Visit]) -> None:
    visit = visitor()
    visit.page.click(".sb-chips button >> nth=0")
    visit.wait_for_value("prompt", RED)
    visit.page.evaluate(WATCH)
    visit.fix_seed(1).ask(RED, steps=60).press("draw").wait_for(1)

    assert seen(visit.picture()) == ("red", "circle", "blue")
    shown = visit.page.evaluate("({...window.shown, words: [...window.shown.words]})")
    assert shown["preview"]
    steps = [re.fullmatch(r"Drawing: step (\d+) of 60", words) for words in shown["words"]]
    assert any(0 < int(step[1]) < 60 for step in steps if step), shown
    facts = visit.facts()
    assert (facts["Prompt"], facts["Seed"], facts["Size"]) == (RED, "1", "128 × 128")

    with visit.page.expect_download() as downloading:
        visit.page.click(".sb-save")
    saved = Image.open(io.BytesIO(downloading.value.path().read_bytes()))
    assert json.loads(saved.info["sdxl-bento"])["seed"] == 1


def test_all_of_a_picture_can_be_used_again(visitor: Callable[..., Visit]) -> None:
    visit = visitor().ask("a large yellow star on a purple background", steps=7, size="128 x 96")
    visit.page.click("#sb-loras input")
    visit.page.click("#sb-loras [role=option]:has-text('striped')")
    visit.page.wait_for_selector("#sb-weight-0 >> text=Weight of striped")
    visit.page.keyboard.press("Escape")
    weight = {"weight-0": "0.8"}
    visit.ask("a large yellow star on a purple background", **weight).press("draw").wait_for(1)
    first, seed = visit.picture(), visit.facts()["Seed"]
    assert visit.facts()["LoRAs"] == "striped × 0.8"

    # Everything else first, so that nothing is right because it was left alone.
    other = visitor().ask(RED, steps=3).press("draw").wait_for(1)
    assert other.facts()["Seed"] != seed, "two tabs are two visits"
    visit.page.click("#sb-loras .token-remove >> nth=0")
    visit.ask(RED, steps=3, size="64 x 64").press("draw").wait_for(2)
    assert visit.picture() != first

    visit.page.click(".sb-gallery button >> nth=1")
    visit.page.wait_for_selector(f".sb-facts dd:text-is('{seed}')")
    visit.press("again")
    visit.wait_for_value("seed", seed)
    visit.page.wait_for_selector("#sb-weight-0")
    visit.press("draw").wait_for(3)
    assert visit.picture() == first
    assert other.page.locator(".sb-gallery button").count() == 1


def test_a_picture_is_refined_and_drawn_over(visitor: Callable[..., Visit]) -> None:
    visit = visitor().ask(RED, steps=12).fix_seed(1).press("draw").wait_for(1)
    first = visit.picture()

    visit.press("refine").wait_for(2)
    assert visit.facts()["Refined"] == "another picture, strength 0.3"
    assert visit.picture() != first
    assert seen(visit.picture()) == ("red", "circle", "blue")

    visit.page.click(".sb-gallery button >> nth=1")
    visit.page.wait_for_function("document.querySelectorAll('.sb-facts dt').length < 8")
    visit.press("over").page.wait_for_selector(".sb-start")
    visit.ask("a yellow circle on a blue background", strength=0.9, steps=20)
    visit.press("draw").wait_for(3)
    assert visit.facts()["Drawn over"] == "another picture, strength 0.9"
    assert seen(visit.picture()) == ("yellow", "circle", "blue")
    visit.press("clear").page.wait_for_selector(".sb-start", state="detached")


def test_an_upload_is_drawn_over_or_refused(visitor: Callable[..., Visit], tmp_path: Path) -> None:
    red, broken = tmp_path / "red.png", tmp_path / "broken.png"
    Image.new("RGB", (320, 160), (230, 30, 30)).save(red)
    broken.write_bytes(b"no picture")
    visit = visitor()
    visit.page.set_input_files("input[type=file]", broken)
    visit.page.wait_for_selector(".sb-error:has-text('Picture: this does not fit')")

    visit.page.set_input_files("input[type=file]", red)
    visit.page.wait_for_selector(".sb-start")
    # The shape that is nearest among those that suit the model.
    visit.wait_for_value("size", "160 × 96")
    visit.ask("a red circle on a red background", strength=0.1, steps=10).press("draw").wait_for(1)
    assert Image.open(io.BytesIO(visit.picture())).size == (160, 96)
    assert seen(visit.picture())[2] == "red"


def test_stop_ends_the_work(visitor: Callable[..., Visit], server: Server) -> None:
    visit = visitor().ask(RED, steps=100, size="256 x 256", count=4).press("draw")
    until(server, lambda stats: stats["running"] > 0)
    visit.press("stop")
    visit.page.wait_for_selector(".sb-remark:has-text('Stopped')")
    until(server, lambda stats: stats["running"] == 0)
    visit.ask(RED, steps=2, size="64 x 64", count=1).press("draw").wait_for(1)


def test_closing_the_page_ends_the_work(visitor: Callable[..., Visit], server: Server) -> None:
    visit = visitor().ask(RED, steps=100, size="256 x 256", count=4).press("draw")
    until(server, lambda stats: stats["running"] > 0)
    visit.page.close()
    until(server, lambda stats: stats["running"] == 0)


def test_an_error_says_what_is_allowed(visitor: Callable[..., Visit]) -> None:
    visit = visitor().press("draw")
    visit.page.wait_for_selector(".sb-error:has-text('Prompt: this does not fit')")

    visit.ask("<b>x</b>", size="100 x 100").press("draw")
    visit.page.wait_for_selector(".sb-error:has-text('Size (width): this does not fit')")
    said = visit.page.inner_text(".sb-error")
    assert "100" in said
    assert "a multiple of 32 from 64 to 256" in said

    # What a visitor writes is text, wherever it is shown.
    visit.ask("<b class=mine>x</b>", size="64 x 64", steps=1).press("draw").wait_for(1)
    assert visit.facts()["Prompt"] == "<b class=mine>x</b>"
    assert visit.page.locator(".mine").count() == 0
    assert visit.page.locator(".sb-error").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(visitor: Callable[..., Visit], scheme: str) -> None:
    phone = {"width": 390, "height": 844}
    visit = visitor(viewport=phone, is_mobile=True, has_touch=True, color_scheme=scheme)

    def overflows() -> bool:
        return bool(visit.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    box = visit.page.locator("#sb-draw").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= phone["height"]
    assert not overflows()
    visit.ask(RED, steps=2).press("draw").wait_for(1)
    visit.press("over").page.wait_for_selector(".sb-start")
    assert not overflows()
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
    assert light == (scheme == "light")


def test_only_what_the_page_needs_is_served(server: Server) -> None:
    assert httpx.get(server.url, headers={"Accept": "text/html"}).headers["location"] == "ui/"
    page = httpx.get(server.url + "/ui/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("file=/etc/passwd", "info", "app_id", "runs", "proxy=http://127.0.0.1/", "user"):
        assert httpx.get(f"{server.url}/ui/gradio_api/{path}").status_code == 404, path
    for path in ("vibe-edit", "call/x", "run/predict", "component_server"):
        assert httpx.post(f"{server.url}/ui/gradio_api/{path}", json={}).status_code == 404, path
    large = {"files": ("large.png", b"x" * (33 << 20), "image/png")}
    refused = httpx.post(server.url + "/ui/gradio_api/upload", files=large)
    assert refused.status_code == 413
    assert "at most" in refused.json()["detail"]


def test_it_knows_the_prefix_of_its_proxy(server: Server) -> None:
    config = httpx.get(server.url + "/ui/config", headers={"X-Forwarded-Prefix": "/pictures"})
    assert config.json()["root"] == f"{server.url}/pictures/ui"
    config = httpx.get(server.url + "/ui/config", headers={"X-Forwarded-Prefix": "//evil.example"})
    assert config.json()["root"] == f"{server.url}/ui"
