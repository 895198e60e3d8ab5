"""Wait for a server of the embedded model, then check by their pixels what it draws.

    python deploy/container/probe.py http://127.0.0.1:3000

Ends with a message and status 1 if something is not as it should be.
"""

from __future__ import annotations

import io
import sys
import time

import httpx
from PIL import Image

from export.embedded.checker import analyse

SCENES = (("red", "circle", "blue"), ("yellow", "star", "green"))
READY_S = 300


def wait_until_ready(client: httpx.Client) -> float:
    """Seconds until `/readyz` said 200. Raises SystemExit after `READY_S`."""
    start = time.monotonic()
    seen: object = None
    while time.monotonic() - start < READY_S:
        try:
            seen = client.get("/readyz").status_code
        except httpx.TransportError as error:
            seen = error
        if seen == 200:
            return time.monotonic() - start
        time.sleep(0.2)
    raise SystemExit(f"/readyz is {seen} after {READY_S} s")


def check_picture(client: httpx.Client, colour: str, shape: str, background: str) -> None:
    """Draw one scene. Raises SystemExit if the picture shows another."""
    prompt = f"a {colour} {shape} on a {background} background"
    answer = client.post("/generate", json={"prompt": prompt, "seed": 7})
    if answer.status_code != 200:
        raise SystemExit(f"/generate answered {answer.status_code}: {answer.text}")
    found = analyse(Image.open(io.BytesIO(answer.content)))
    if (found.colour, found.shape, found.background) != (colour, shape, background):
        raise SystemExit(f"{prompt!r} came out as {found}")
    print(f"drew {prompt}")


def main(url: str) -> None:
    """Check the server at `url`."""
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        print(f"ready after {wait_until_ready(client):.1f} s")
        if client.get("/livez").status_code != 200:
            raise SystemExit("/livez is not 200")
        for scene in SCENES:
            check_picture(client, *scene)


if __name__ == "__main__":
    main(sys.argv[1])
