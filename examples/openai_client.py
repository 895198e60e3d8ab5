"""Draw, stream and edit with OpenAI's client: `python examples/openai_client.py "a red circle …"`.

It needs `pip install openai`. docs/guides/openai.md says what is supported.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

from openai import OpenAI


def draw(client: OpenAI, prompt: str, path: Path) -> None:
    """Draw one picture, with fields that OpenAI's API does not have."""
    extra = {"num_inference_steps": 20, "seed": 1}
    answer = client.images.generate(prompt=prompt, extra_body=extra)
    save(answer.data[0].b64_json, path)


def draw_with_previews(client: OpenAI, prompt: str, path: Path) -> None:
    """The same picture, and two of what there was of it on the way."""
    extra = {"num_inference_steps": 20, "seed": 1}
    events = client.images.generate(
        prompt=prompt, stream=True, partial_images=2, output_format="jpeg", extra_body=extra
    )
    for event in events:
        if event.type == "image_generation.partial_image":
            name = f"{path.stem}-{event.partial_image_index}"
            save(event.b64_json, path.with_stem(name).with_suffix(".jpeg"))
        else:
            save(event.b64_json, path.with_suffix(".jpeg"))


def edit(client: OpenAI, prompt: str, path: Path) -> None:
    """The picture at `path`, redrawn as far as `strength` says."""
    with path.open("rb") as picture:
        answer = client.images.edit(image=picture, prompt=prompt, extra_body={"strength": 0.6})
    save(answer.data[0].b64_json, path.with_stem(f"{path.stem}-edited"))


def save(b64_json: str, path: Path) -> None:
    path.write_bytes(base64.b64decode(b64_json))
    print(f"saved {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt", nargs="?", default="a red circle on a blue background")
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    options = parser.parse_args()
    with OpenAI(base_url=f"{options.url}/v1", api_key="unused") as client:
        draw(client, options.prompt, options.output)
        draw_with_previews(client, options.prompt, options.output)
        edit(client, options.prompt.replace("red", "yellow"), options.output)


if __name__ == "__main__":
    main()
