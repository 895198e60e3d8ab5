"""The three routes of dstack's tutorial, as it calls them, over an engine that draws nothing."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import pytest
import requests
from PIL import Image

from tests.contracts.conftest import RUN_S, finished, until_idle
from tests.support.server import Server

JSON = {"Accept": "application/json"}
PROMPT = {"prompt": "A quick cat in a hat"}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_the_tutorial(faked: Server) -> None:
    made = requests.post(f"{faked.url}/generate", json=PROMPT, headers=JSON)
    assert made.status_code == 200
    image_id = made.json()["id"]
    refined = requests.post(f"{faked.url}/refine", json={"id": image_id, **PROMPT}, headers=JSON)
    assert refined.json()["id"] not in ("", image_id)
    for each in (image_id, refined.json()["id"]):
        file = requests.get(f"{faked.url}/download/{each}")
        assert file.headers["content-type"] == "image/png"
        assert file.headers["content-disposition"] == f'attachment; filename="{each}.png"'
        assert opened(file.content).size == (64, 64)


def test_its_fields_and_their_nulls(faked: Server) -> None:
    body: dict[str, Any] = {**PROMPT, "negative_prompt": None, "width": None, "height": "96"}
    made = requests.post(f"{faked.url}/generate", json=body, headers=JSON).json()
    assert (made["images"][0]["width"], made["images"][0]["height"]) == (64, 96)


def test_the_id_is_a_header_of_the_picture(faked: Server) -> None:
    made = httpx.post(f"{faked.url}/generate", json=PROMPT)
    assert made.headers["content-type"] == "image/png"
    body = {"id": made.headers["x-image-id"], **PROMPT}
    refined = httpx.post(f"{faked.url}/refine", json=body)
    assert refined.headers["content-type"] == "image/png"
    stored = httpx.get(f"{faked.url}/download/{refined.headers['x-image-id']}")
    assert stored.content == refined.content


def test_several_pictures_have_the_first_ones_id(faked: Server) -> None:
    made = httpx.post(f"{faked.url}/generate", json={**PROMPT, "num_images": 2}).json()
    assert made["id"] == made["images"][0]["image_id"] != made["images"][1]["image_id"]
    assert base64.b64decode(made["images"][0]["b64_json"])


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("generate", {}, 422, "prompt"),
        ("generate", {"prompt": 5}, 422, "prompt"),
        ("generate", {**PROMPT, "height": "tall"}, 422, "height"),
        ("generate", {**PROMPT, "model": "other"}, 404, "model"),
        ("generate", {**PROMPT, "loras": [{"name": "other"}]}, 404, "loras"),
        ("generate", {"prompt": "x" * 2_000_000}, 413, "body"),
        ("generate", {**PROMPT, "width": 1}, 422, "width"),
        ("generate", {"prompt": "full"}, 429, None),
        ("generate", {"prompt": "late"}, 503, None),
        ("refine", PROMPT, 422, "image"),
        ("refine", {**PROMPT, "id": "x" * 22}, 404, "id"),
        ("refine", {**PROMPT, "id": 5}, 404, "id"),
        ("refine", {**PROMPT, "id": "x", "image_id": "y"}, 422, "id"),
        ("refine", {"id": "x" * 22}, 422, "prompt"),
    ],
)
def test_errors(
    faked: Server, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    answer = httpx.post(f"{faked.url}/{path}", json=body, headers=JSON)
    assert answer.status_code == status
    assert answer.json()["error"]["field"] == field
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize("path", ["generate", "refine"])
def test_malformed_json(faked: Server, path: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{faked.url}/{path}", content=b'{"prompt": ', headers=headers)
    assert answer.status_code == 400


def test_pictures_that_are_not_there(faked: Server) -> None:
    for image_id in ("nope", "x" * 22, "..%2F..%2Fetc%2Fpasswd"):
        assert httpx.get(f"{faked.url}/download/{image_id}").status_code == 404


def test_a_server_that_is_not_ready(loading: Server) -> None:
    answer = httpx.post(f"{loading.url}/generate", json=PROMPT, headers=JSON)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_a_client_that_leaves_ends_its_call(faked: Server) -> None:
    image_id = httpx.post(f"{faked.url}/generate", json=PROMPT).headers["x-image-id"]
    until_idle(faked)
    before = finished(faked, "native")
    with pytest.raises(httpx.TimeoutException):
        body = {"id": image_id, "prompt": "A cat in a hat"}
        httpx.post(f"{faked.url}/refine", json=body, timeout=RUN_S / 4)
    until_idle(faked)
    assert finished(faked, "native") == before
