"""What callers are promised, tried from outside."""

from __future__ import annotations

import io
import random
import secrets
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.attacks.attack import Attack, Site, told

PLAIN: dict[str, Any] = {"prompt": "a red circle on a blue background", "num_inference_steps": 4}
MOST_LEVELS = 2  # of 255


def pixels(data: bytes) -> np.ndarray:
    """A picture's file as [H, W, 3] of levels."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


async def neighbours(site: Site, rng: random.Random) -> str | None:
    """The same picture beside any others: sizes, adapters, guidance, samplers."""
    if "alone" not in site.memory:
        return None
    beside = {
        "prompt": f"a blue square {rng.random()}",
        "num_inference_steps": rng.randrange(2, 8),
        "guidance_scale": rng.choice([1.0, 5.0, 7.5]),
        "seed": rng.randrange(1000),
    }
    if site.memory.get("loras") and rng.random() < 0.6:
        beside["loras"] = [{"name": rng.choice(site.memory["loras"]), "scale": rng.random()}]
    await site.http.post("/generate", json=beside)
    response = await site.http.post("/generate", json=PLAIN | {"seed": 11})
    if surprise := told(response, 200):
        return surprise
    worst = int(np.abs(pixels(response.content) - site.memory["alone"]).max())
    return None if worst <= MOST_LEVELS else f"{worst} levels from the picture drawn alone"


async def unknown_paths(site: Site, rng: random.Random) -> str | None:
    """Paths that nobody serves, each another: none may become a label of a metric."""
    path = rng.choice(["/", "/images/", "/v1/models/", "/v2/models/", "/ui/"])
    path += secrets.token_hex(12)
    if path.startswith("/ui/"):
        return None if (await site.http.get(path)).status_code < 500 else path
    return told(await site.http.get(path), 404)


async def never_fitting(site: Site, rng: random.Random) -> str | None:
    """What can never be served, which no waiting helps."""
    body = rng.choice(
        [
            {"num_images": 10_000},
            {"width": 65_536, "height": 65_536},
            {"num_inference_steps": 100_000},
            {"model": "no-such-model"},
            {"loras": [{"name": "no-such-adapter"}]},
        ]
    )
    return told(await site.http.post("/generate", json=PLAIN | body), 404, 413, 422)


async def refused_streams(site: Site, rng: random.Random) -> str | None:
    """A stream that is refused has its status, and no events."""
    body = rng.choice([{"slo_ms": 0.001}, {"width": 13}, {"model": "no-such-model"}])
    return told(await site.http.post("/generate/stream", json=PLAIN | body), 404, 422, 503)


PROMISES = (
    Attack("neighbours", "the same picture beside any others", neighbours, draws=True),
    Attack("unknown-paths", "paths that nobody serves", unknown_paths),
    Attack("never-fitting", "what can never be served", never_fitting),
    Attack("refused-streams", "streams that are refused", refused_streams),
)
