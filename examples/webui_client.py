"""Draw with a client of AUTOMATIC1111's API: `python examples/webui_client.py "a red circle …"`.

It needs `pip install webuiapi`. docs/guides/automatic1111.md says what is supported.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from urllib.parse import urlsplit

from webuiapi import WebUIApi


def draw(api: WebUIApi, prompt: str, path: Path) -> None:
    """Draw a picture, and then redraw it with a strength of a third."""
    size = {"width": 128, "height": 128, "cfg_scale": 5}
    drawn = api.txt2img(prompt=prompt, seed=1, sampler_name="DPM++ 2M", **size)
    drawn.image.save(path)
    print(f"saved {path}\n{drawn.info['infotexts'][0]}")
    redrawn = api.img2img(images=[drawn.image], prompt=prompt, denoising_strength=0.3, **size)
    redrawn.image.save(path.with_stem(f"{path.stem}-redrawn"))


def show_progress(api: WebUIApi, done: threading.Event) -> None:
    while not done.wait(0.2):
        progress = api.get_progress()
        if progress["state"]["sampling_steps"]:
            print(f"{progress['progress']:.0%}, {progress['eta_relative']:.1f} s to go")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt", nargs="?", default="a red circle on a blue background")
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    options = parser.parse_args()
    address = urlsplit(options.url)
    api = WebUIApi(host=address.hostname, port=address.port)
    done = threading.Event()
    watcher = threading.Thread(target=show_progress, args=(api, done))
    watcher.start()
    try:
        draw(api, options.prompt, options.output)
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    main()
