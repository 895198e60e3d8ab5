"""Draw the pictures of the page that the documentation shows.

Serves the embedded model from the model store, opens the page in the Chromium of this system, and
writes `docs/images/page.png` and `docs/images/page-phone.png`.

    python -m export embedded
    python -m tools.screenshots
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.support.server import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
# (prompt, seed): nothing here is left to chance.
PICTURES = (
    ("two green squares on a white background", 3),
    ("an orange heart on the left on a black background", 5),
    ("a red circle on a blue background", 7),
    ("a large yellow star on a purple background", 1),
)
DESKTOP = {"viewport": {"width": 1180, "height": 900}, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


def main() -> None:
    """Write both pictures, or say what is missing."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no chromium here; on Debian: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        serve("service:SDXLService", Path(folder, "log")) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in (("page", DESKTOP), ("page-phone", PHONE)):
            save(shot(browser, server.url, options), IMAGES / f"{name}.png")
        browser.close()


def shot(browser: Browser, url: str, options: dict[str, Any]) -> bytes:
    """The page after some drawing, as a PNG."""
    page = browser.new_page(**options)
    page.goto(url)
    page.wait_for_selector(".sb-chips button")
    page.uncheck("#sb-random input")
    for count, (prompt, seed) in enumerate(PICTURES, start=1):
        page.fill("#sb-prompt textarea", prompt)
        page.fill("#sb-seed :is(input, textarea)", str(seed))
        page.click("#sb-draw")
        page.wait_for_function(
            "count => document.querySelectorAll('.sb-gallery button').length === count", arg=count
        )
    settle(page)
    return page.screenshot()


def settle(page: Page) -> None:
    """Wait for pictures that are still on their way, and look from the top."""
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.evaluate("document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'})")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # what is animated comes to rest


def save(png: bytes, path: Path) -> None:
    """With 256 colours, which is a third of the size."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)
    print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
