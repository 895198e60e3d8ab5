"""The service as its users see it: a real `bentoml serve` process over the embedded model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image

from export.embedded.checker import Analysis, analyse
from tests.support.server import ROOT, Server

STEPS = 14
RED: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "seed": 1,
    "num_inference_steps": STEPS,
}
GREEN: dict[str, Any] = {
    "prompt": "a green square on a yellow background",
    "num_inference_steps": STEPS,
}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def seen(data: bytes) -> tuple[str | None, str | None, str | None, int | None]:
    found: Analysis = analyse(opened(data))
    return found.colour, found.shape, found.background, found.count


def far(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures in any pixel and channel."""
    pair = [np.asarray(opened(data)).astype(int) for data in (one, other)]
    return int(np.abs(pair[0] - pair[1]).max())


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.fixture(scope="module")
def red(http: httpx.Client) -> httpx.Response:
    return http.post("/generate", json=RED)


def test_the_picture_shows_the_prompt(red: httpx.Response) -> None:
    assert red.headers["content-type"] == "image/png"
    assert opened(red.content).size == (128, 128)
    assert seen(red.content) == ("red", "circle", "blue", 1)


def test_headers(red: httpx.Response) -> None:
    assert red.headers["x-seed"] == "1"
    assert red.headers["x-model"]
    timing = dict(part.split(";dur=") for part in red.headers["server-timing"].split(", "))
    assert float(timing["base"]) > float(timing["refine"]) == 0
    assert float(timing["total"]) >= float(timing["base"])


def test_a_prompt_that_is_cut_is_told(http: httpx.Client) -> None:
    """Two prompts that differ only where nothing is read give one picture, and both are warned."""
    long = f"{RED['prompt']}, {'very ' * 80}"
    brief = {"seed": 1, "num_inference_steps": 2}
    answers = [http.post("/generate", json={"prompt": long + end, **brief}) for end in "ab"]
    for answer, end in zip(answers, "ab", strict=True):
        warning = answer.headers["x-warning"]
        assert warning.startswith("prompt: only the first 75 of its ")
        assert warning.endswith(f'{end}"')
    pixels = [np.asarray(opened(answer.content)) for answer in answers]
    assert np.array_equal(*pixels)


def test_the_same_seed_gives_the_same_bytes(http: httpx.Client, red: httpx.Response) -> None:
    assert http.post("/generate", json=RED).content == red.content
    assert http.post("/generate", json=RED | {"seed": 2}).content != red.content


def test_a_random_seed_can_be_used_again(http: httpx.Client) -> None:
    first = http.post("/generate", json=GREEN)
    again = http.post("/generate", json=GREEN | {"seed": int(first.headers["x-seed"])})
    assert again.content == first.content


def test_the_printed_command_saves_a_picture(server: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    [command] = re.findall(r"^  (curl .*)$", server.output(), re.MULTILINE)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
    assert seen((tmp_path / "picture.png").read_bytes()) == ("red", "circle", "blue", 1)


@pytest.mark.parametrize("count", [1, 2])
def test_the_example_client_saves_pictures(server: Server, tmp_path: Path, count: int) -> None:
    command = [sys.executable, str(ROOT / "examples" / "client.py"), "--count", str(count)]
    command += ["--url", server.url, "--output", "made.png", RED["prompt"]]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    made = sorted(tmp_path.glob("made*.png"))
    assert len(made) == count
    assert all(seen(path.read_bytes())[0] == "red" for path in made)


def test_sync_client(server: Server, red: httpx.Response) -> None:
    with bentoml.SyncHTTPClient(server.url, timeout=120) as client:
        assert client.generate(**RED).read_bytes() == red.content


async def test_async_client_with_mixed_calls(server: Server, red: httpx.Response) -> None:
    calls: list[dict[str, Any]] = [
        RED,
        GREEN | {"seed": 3, "sampler": "ddim"},
        GREEN | {"seed": 4, "num_inference_steps": 20, "guidance_scale": 4.0},
        RED | {"seed": 5, "sampler": "dpmpp_2m"},
    ]
    async with bentoml.AsyncHTTPClient(server.url, timeout=120) as client:
        paths = await asyncio.gather(*(client.generate(**call) for call in calls))
    pictures = [path.read_bytes() for path in paths]
    assert far(pictures[0], red.content) <= 1  # whoever shared its batch
    assert [seen(data)[0] for data in pictures] == ["red", "green", "green", "red"]
    assert [seen(data)[2] for data in pictures] == ["blue", "yellow", "yellow", "blue"]


def test_several_pictures(http: httpx.Client, red: httpx.Response) -> None:
    answer = http.post("/generate", json=RED | {"num_images": 2}).json()
    pictures = [base64.b64decode(image["b64_json"]) for image in answer["images"]]
    assert [image["seed"] for image in answer["images"]] == [1, 2]
    assert far(pictures[0], red.content) <= 1
    assert [seen(data)[0] for data in pictures] == ["red", "red"]


def test_batch_with_one_bad_item(http: httpx.Client, red: httpx.Response) -> None:
    items = [RED, {"prompt": "a", "width": 100}, GREEN | {"seed": 8}]
    results = http.post("/generate_batch", json={"requests": items}).json()
    assert far(base64.b64decode(results[0]["images"][0]["b64_json"]), red.content) <= 1
    assert (results[1]["error"]["field"], results[1]["error"]["status"]) == ("width", 422)
    assert seen(base64.b64decode(results[2]["images"][0]["b64_json"]))[0] == "green"


@pytest.mark.parametrize("size", [(192, 128), (128, 192)])
def test_other_sizes(http: httpx.Client, size: tuple[int, int]) -> None:
    body = RED | {"width": size[0], "height": size[1], "output_format": "webp"}
    answer = http.post("/generate", json=body)
    assert opened(answer.content).size == size
    assert seen(answer.content)[0] == "red"


def test_a_lora_and_the_refiner_change_the_picture(http: httpx.Client, red: httpx.Response) -> None:
    striped = http.post("/generate", json=RED | {"loras": [{"name": "striped"}]})
    refined = http.post("/generate", json=RED | {"refiner": True})
    for answer in (striped, refined):
        assert answer.status_code == 200
        assert far(answer.content, red.content) > 20
        assert seen(answer.content)[2] == "blue"
    assert "refine;dur=0," not in refined.headers["server-timing"]


def test_image_to_image_and_refine(http: httpx.Client, red: httpx.Response) -> None:
    blue = RED | {"prompt": "a yellow circle on a blue background", "strength": "0.9"}
    redrawn = http.post("/img2img", data=blue, files={"image": red.content})
    assert redrawn.status_code == 200, redrawn.text
    assert seen(redrawn.content)[:3] == ("yellow", "circle", "blue")
    assert "x-cut-from" not in redrawn.headers
    body = RED | {"image_id": red.headers["x-image-id"], "strength": 0.3}
    refined = http.post("/refine", json=body)
    assert refined.status_code == 200, refined.text
    assert seen(refined.content)[:3] == ("red", "circle", "blue")


def test_a_picture_that_is_off_the_grid(http: httpx.Client, red: httpx.Response) -> None:
    """It is drawn at the nearest size, and what is seen in it stays as it is."""
    wide = Image.new("RGB", (147, 127), "blue")
    wide.paste(Image.open(io.BytesIO(red.content)).resize((127, 127)), (10, 0))
    out = io.BytesIO()
    wide.save(out, "WEBP", lossless=True)
    fields = {"prompt": RED["prompt"], "seed": "1", "strength": "0.3", "height": "128"}
    answer = http.post("/img2img", data=fields | {"width": "128"}, files={"image": out.getvalue()})
    assert answer.headers["x-cut-from"] == "147x127"
    assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
    assert seen(answer.content)[:3] == ("red", "circle", "blue")
    out = io.BytesIO()
    wide.resize((30, 31)).save(out, "PNG")
    error = refused(
        http.post("/img2img", data={"prompt": "a"}, files={"image": out.getvalue()}), 422
    )
    assert (error["field"], error["value"]) == ("image", "30x31")


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": None, "sampler": "dpmpp_2m", "output_format": "webp", "output_quality": 70},
        {"loras": [{"name": "striped", "scale": 0.8}], "refiner": True, "high_noise_frac": 0.5},
    ],
)
def test_any_picture_can_be_made_again(http: httpx.Client, fields: dict[str, Any]) -> None:
    """By what is known of it, sent back as it is."""
    made = http.post("/generate", json=RED | {"num_inference_steps": 6} | fields)
    about = http.get(f"/images/{made.headers['x-image-id']}/metadata").json()
    assert http.post(f"/{about['task']}", json=about["params"]).content == made.content
    assert about["drawn_by"]["loras"].keys() == {lora["name"] for lora in fields.get("loras", [])}
    assert len(about["drawn_by"]["artifact"]) == 64


def test_a_redrawn_picture_can_be_made_again(http: httpx.Client, red: httpx.Response) -> None:
    image_id = red.headers["x-image-id"]
    fields = GREEN | {"num_inference_steps": 6, "strength": 0.6, "seed": 2, "image_id": image_id}
    for route in ("/img2img", "/refine"):
        made = http.post(route, json=fields)
        about = http.get(f"/images/{made.headers['x-image-id']}/metadata").json()
        assert f"/{about['task']}" == route
        body = about["params"] | {"image_id": about["source"]["image_id"]}
        assert http.post(route, json=body).content == made.content


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"width": 100}, 422, "width"),
        ({"num_inference_steps": 101}, 422, "num_inference_steps"),
        ({"num_images": 9}, 422, "num_images"),
        ({"width": 4096, "height": 4096}, 422, None),
        ({"model": "nope"}, 404, "model"),
        ({"loras": [{"name": "nope"}]}, 404, "loras"),
        ({"prompt": None}, 422, "prompt"),
    ],
)
def test_refusals(
    http: httpx.Client, fields: dict[str, Any], status: int, field: str | None
) -> None:
    error = refused(http.post("/generate", json=RED | fields), status)
    assert field is None or error["field"] == field
    assert error["allowed"]


def test_lists(http: httpx.Client) -> None:
    [model] = http.get("/models").json()["models"]
    assert (model["default"], model["default_width"], model["has_refiner"]) == (True, 128, True)
    assert {lora["name"] for lora in http.get("/loras").json()["loras"]} >= {"striped", "outlined"}
    assert "dpmpp_2m" in http.get("/samplers").json()["samplers"]


def test_progress(http: httpx.Client) -> None:
    text = http.post("/generate/stream", json=RED).text
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    events = [(name[7:], json.loads(data[6:])) for name, data in blocks]
    steps = [data["step"] for name, data in events if name == "step" and data["stage"] == "base"]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    assert events[-1][0] == "done"
    assert seen(base64.b64decode(events[-1][1]["images"][0]["b64_json"]))[0] == "red"


LONG = RED | {"num_inference_steps": 100, "num_images": 4}


def _until(http: httpx.Client, running: bool, timeout_s: float = 20) -> float:
    begin = time.monotonic()
    while bool(http.get("/stats").json()["running"]) != running:
        assert time.monotonic() - begin < timeout_s, http.get("/stats").json()
        time.sleep(0.05)
    return time.monotonic() - begin


def test_a_client_that_leaves_ends_its_call(http: httpx.Client) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{http.base_url}/generate", json=LONG, timeout=1.0)
    assert _until(http, running=False) < 10  # alone it would take longer


def test_cancel(http: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        headers = {"X-Request-Id": "stop-me"}
        call = pool.submit(http.post, "/generate", json=LONG, headers=headers)
        _until(http, running=True)
        assert http.post("/cancel/stop-me").status_code == 200
        assert refused(call.result(30), 409)["request_id"] == "stop-me"
    _until(http, running=False)


def test_nothing_went_wrong_unnoticed(http: httpx.Client, server: Server) -> None:
    assert http.get("/readyz").status_code == 200
    assert "Traceback" not in server.output()
    assert "never retrieved" not in server.output()
