"""Other protocols' own clients against a real server over the embedded model.

Their contract suites, with every error, are in tests/contracts.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import requests
from openai import OpenAI
from PIL import Image
from webuiapi import WebUIApi

from export.embedded.checker import analyse
from tests.support.server import ROOT, Server

STEPS = 14
RED = "a red circle on a blue background"
EXTRA: dict[str, Any] = {"seed": 1, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def api(server: Server) -> WebUIApi:
    address = urlsplit(server.url)
    return WebUIApi(host=address.hostname, port=address.port)


@pytest.fixture(scope="module")
def native(http: httpx.Client) -> bytes:
    """The picture that every protocol's call of the same parameters has to give."""
    return http.post("/generate", json={"prompt": RED, **EXTRA}).content


def seen(image: Image.Image) -> tuple[str | None, str | None, str | None]:
    found = analyse(image.convert("RGB"))
    return found.colour, found.shape, found.background


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# OpenAI


def test_openai_draws_what_the_native_call_draws(client: OpenAI, native: bytes) -> None:
    answer = client.images.generate(prompt=RED, extra_body=EXTRA)
    assert answer.data is not None
    assert base64.b64decode(str(answer.data[0].b64_json)) == native
    assert answer.size == "128x128"


def test_openai_with_a_lora_and_two_pictures(client: OpenAI, http: httpx.Client) -> None:
    extra = EXTRA | {"loras": [{"name": "striped"}], "refiner": True}
    answer = client.images.generate(
        prompt=RED, n=2, size="128x128", response_format="url", extra_body=extra
    )
    assert answer.data is not None
    pictures = [httpx.get(str(each.url)).content for each in answer.data]
    native = http.post("/generate", json={"prompt": RED, "num_images": 2, **extra}).json()
    assert pictures == [base64.b64decode(each["b64_json"]) for each in native["images"]]
    with pytest.raises(openai.NotFoundError, match=r"available: .*striped"):
        client.images.generate(prompt=RED, extra_body={"loras": [{"name": "nope"}]})


def test_openai_edits(client: OpenAI, native: bytes) -> None:
    extra = {"seed": 1, "strength": 0.9, "num_inference_steps": 20}
    answer = client.images.edit(
        image=native, prompt="a green circle on a blue background", extra_body=extra
    )
    assert answer.data is not None
    assert seen(opened(base64.b64decode(str(answer.data[0].b64_json))))[0] == "green"


def test_openai_streams(client: OpenAI, native: bytes) -> None:
    events = list(
        client.images.generate(prompt=RED, stream=True, partial_images=3, extra_body=EXTRA)
    )
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert opened(base64.b64decode(events[0].b64_json)).width < 128
    assert base64.b64decode(events[-1].b64_json) == native


def test_openai_stream_that_is_closed(client: OpenAI, http: httpx.Client) -> None:
    extra = {"num_inference_steps": 100}
    with client.images.generate(
        prompt=RED, n=2, size="128x128", stream=True, partial_images=3, extra_body=extra
    ) as events:
        next(iter(events))
    deadline = time.monotonic() + 3
    while http.get("/stats").json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# AUTOMATIC1111


def test_a1111_draws_what_the_native_call_draws(api: WebUIApi, http: httpx.Client) -> None:
    answer = api.txt2img(
        prompt=f"{RED} <lora:striped:0.5>", seed=1, steps=STEPS, cfg_scale=5,
        width=128, height=128, sampler_name="DPM++ 2M",
    )  # fmt: skip
    asked = {"prompt": RED, **EXTRA, "sampler": "dpmpp_2m_karras"}
    asked["loras"] = [{"name": "striped", "scale": 0.5}]
    assert base64.b64decode(answer.json["images"][0]) == http.post("/generate", json=asked).content
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in answer.info["infotexts"][0]


def test_a1111_redraws(api: WebUIApi, native: bytes) -> None:
    size = {"width": 128, "height": 128}
    answer = api.img2img(
        images=[opened(native)], prompt="a green circle on a blue background",
        seed=1, steps=20, cfg_scale=5, denoising_strength=0.9, **size,
    )  # fmt: skip
    assert seen(answer.image)[0] == "green"


def test_a1111_shows_progress_and_interrupts(api: WebUIApi) -> None:
    raised: list[tuple[object, ...]] = []

    def draw() -> None:
        try:
            api.txt2img(prompt=RED, steps=100, width=256, height=256, batch_size=4)
        except RuntimeError as error:
            raised.append(error.args)

    thread = threading.Thread(target=draw)
    thread.start()
    while not (progress := api.get_progress())["current_image"]:
        assert thread.is_alive()
        time.sleep(0.02)
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 100
    api.interrupt()
    thread.join(10)
    assert [args[0] for args in raised] == [409]


# dstack


def test_dstacks_flow(server: Server) -> None:
    headers = {"Accept": "application/json"}
    made = requests.post(f"{server.url}/generate", json={"prompt": RED}, headers=headers).json()
    body = {"id": made["id"], "prompt": RED}
    refined = requests.post(f"{server.url}/refine", json=body, headers=headers).json()
    for answer in (made, refined):
        picture = opened(requests.get(f"{server.url}/download/{answer['id']}").content)
        assert seen(picture) == ("red", "circle", "blue")


# Examples


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("openai_client", ["made-0.jpeg", "made-1.jpeg", "made-edited.png", "made.jpeg"]),
        ("webui_client", ["made-redrawn.png"]),
    ],
)
def test_examples(server: Server, tmp_path: Path, name: str, files: list[str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--url", server.url]
    command += ["--output", "made.png", RED]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["made.png", *files])
    assert seen(Image.open(tmp_path / "made.png")) == ("red", "circle", "blue")
