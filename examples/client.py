"""Draw a picture with BentoML's clients: `python examples/client.py "a red circle on …"`.

The methods of a client are the routes of the server, and their arguments are the fields of the
request, which docs/guides/native.md describes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from pathlib import Path

import bentoml


def draw(url: str, prompt: str, path: Path) -> None:
    """Draw one picture. The client stores it in a temporary file until it is closed."""
    with bentoml.SyncHTTPClient(url, timeout=600) as client:
        picture = client.generate(prompt=prompt, num_inference_steps=25)
        shutil.copyfile(picture, path)
    print(f"saved {path}")


async def draw_many(url: str, prompt: str, count: int, path: Path) -> None:
    """Several at once: the server draws them in shared forwards."""
    async with bentoml.AsyncHTTPClient(url, timeout=600) as client:
        calls = [client.generate(prompt=prompt, seed=seed) for seed in range(count)]
        for seed, picture in enumerate(await asyncio.gather(*calls)):
            one = path.with_stem(f"{path.stem}-{seed}")
            shutil.copyfile(picture, one)
            print(f"saved {one}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt", nargs="?", default="a red circle on a blue background")
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    parser.add_argument("--count", type=int, default=1, help="with seeds 0, 1, …")
    options = parser.parse_args()
    if options.count == 1:
        draw(options.url, options.prompt, options.output)
    else:
        asyncio.run(draw_many(options.url, options.prompt, options.count, options.output))


if __name__ == "__main__":
    main()
