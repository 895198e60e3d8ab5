"""Stored and cached pictures in every protocol: two processes, one bucket of a real S3 server."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.s3 import Bucket, s3_server
from tests.support.server import FAKED, Server, faked_environment, serve

RED = {"prompt": "a quick circle", "seed": 5, "width": 64, "height": 96}
PREFIX = "team/prod"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(s3: str) -> Bucket:
    return Bucket.empty(s3, "pictures")


@pytest.fixture(scope="module")
def server(s3: str, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = {"SDXL_STORE": f"s3://{bucket.name}/{PREFIX}", "SDXL_RESULT_CACHE": 1}
    settings["SDXL_STORE_TIMEOUT_S"] = 20  # however busy the machine
    env = faked_environment(folder / "home", SDXL_WORKERS=2, FAKE_PREVIEWS=1, **settings)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "verysecret"}
    env |= keys | {"AWS_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "us-east-1"}
    with serve(FAKED, folder / "log", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    # No connection is kept, so that either process answers.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:
        yield client


def keys(bucket: Bucket) -> list[str]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return [item["Key"] for item in listed]


def test_every_process_has_every_picture(http: httpx.Client, bucket: Bucket) -> None:
    made = [http.post("/generate", json=RED | {"seed": seed}) for seed in range(20, 24)]
    ids = [answer.headers["x-image-id"] for answer in made]
    for _ in range(3):
        for image_id, answer in zip(ids, made, strict=True):
            assert http.get(f"/images/{image_id}").content == answer.content
    stored = keys(bucket)
    assert {f"{PREFIX}/{image_id}.{kind}" for image_id in ids for kind in ("png", "json")} <= {
        *stored
    }
    assert all(key.startswith(PREFIX) for key in stored)
    cached = [http.post("/generate", json=RED | {"seed": seed}) for seed in range(20, 24)]
    assert [answer.headers["x-image-id"] for answer in cached] == ids


def test_metadata(http: httpx.Client) -> None:
    body = RED | {"seed": 30, "slo_ms": 60_000, "negative_prompt": ""}
    image_id = http.post("/generate", json=body).headers["x-image-id"]
    about = http.get(f"/images/{image_id}/metadata").json()
    assert about["image_id"] == image_id
    assert (about["format"], about["width"], about["height"]) == ("png", 64, 96)
    age = datetime.now(UTC) - datetime.fromisoformat(about["created"])
    assert -2 < age.total_seconds() < 60
    params = about["params"]
    assert params.items() >= {**RED, "seed": 30, "model": "fake", "sampler": "euler"}.items()
    assert (params["negative_prompt"], params["num_images"]) == ("", 1)
    assert "slo_ms" not in params
    assert (about["task"], about["source"]) == ("generate", None)
    assert about["drawn_by"].items() >= {"model": "fake:1", "backend": "fake"}.items()
    redrawn = http.post("/img2img", json={"prompt": "quick", "image_id": image_id, "seed": 1})
    about = http.get(f"/images/{redrawn.headers['x-image-id']}/metadata").json()
    assert (about["task"], about["source"]["image_id"]) == ("img2img", image_id)
    assert http.get(f"/images/{'x' * 22}/metadata").status_code == 404


def test_what_a_file_says_of_itself(http: httpx.Client) -> None:
    answer = http.post("/generate", json=RED | {"seed": 31})
    info = Image.open(io.BytesIO(answer.content)).info
    prompt, facts = info["parameters"].split("\n")
    assert prompt == RED["prompt"]
    assert "Steps: 25, Sampler: Euler" in facts
    assert "Seed: 31, Size: 64x96, Model: fake" in facts
    about = http.get(f"/images/{answer.headers['x-image-id']}/metadata").json()
    assert json.loads(info["sdxl-bento"]) == about["params"]


# Each protocol, by the bytes of the pictures in its answer

Answered = Callable[[httpx.Client, dict[str, str]], tuple[httpx.Response, list[bytes]]]


def native(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    answer = http.post("/generate", json=RED, headers=headers)
    return answer, [answer.content]


def several(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    answer = http.post("/generate", json=RED | {"num_images": 2, "seed": 50}, headers=headers)
    return answer, decoded(each["b64_json"] for each in answer.json()["images"])


def refine(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    files = {"image": out.getvalue()}
    answer = http.post(
        "/refine", data={"prompt": "quick", "seed": "51"}, files=files, headers=headers
    )
    return answer, [answer.content]


def openai(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    body = {"prompt": "quick", "size": "64x96", "seed": 52, "n": 2}
    answer = http.post("/v1/images/generations", json=body, headers=headers)
    return answer, decoded(each["b64_json"] for each in answer.json()["data"])


def a1111(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    body = {"prompt": "quick", "seed": 53, "batch_size": 2}
    answer = http.post("/sdapi/v1/txt2img", json=body, headers=headers)
    return answer, decoded(answer.json()["images"])


def kserve_v1(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    body = {"instances": [{"prompt": "quick", "seed": 54}, {"prompt": "quick", "seed": 55}]}
    answer = http.post("/v1/models/fake:predict", json=body, headers=headers)
    return answer, decoded(each["image"]["b64"] for each in answer.json()["predictions"])


def kserve_v2(http: httpx.Client, headers: dict[str, str]) -> tuple[httpx.Response, list[bytes]]:
    answer = http.post("/v2/models/fake/infer", json=v2("image"), headers=headers)
    return answer, decoded(answer.json()["outputs"][0]["data"])


def v2(*outputs: str, **parameters: Any) -> dict[str, Any]:
    prompt = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["quick", "quick 2"]}
    wanted = [{"name": name, "parameters": {"binary_data": name == "pixels"}} for name in outputs]
    return {"inputs": [prompt], "outputs": wanted, "parameters": {"seed": 56, **parameters}}


def decoded(texts: Any) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


@pytest.mark.parametrize("call", [native, several, refine, openai, a1111, kserve_v1, kserve_v2])
def test_each_protocol_answers_again_with_the_same_bytes(
    http: httpx.Client, call: Answered
) -> None:
    first, pictures = call(http, {})
    again, same = call(http, {})
    around, _ = call(http, {"Cache-Control": "no-cache"})
    assert pictures
    assert pictures == same
    marks = [answer.headers["x-cache"] for answer in (first, again, around)]
    assert marks == ["miss", "hit", "miss"]
    assert first.headers.get("x-image-id") == again.headers.get("x-image-id")


def test_items_of_a_batch_say_it_in_their_json(http: httpx.Client) -> None:
    body = {"requests": [RED | {"seed": 60}, RED | {"seed": 61}]}
    answers = [http.post("/generate_batch", json=body).json() for _ in range(2)]
    marks = [[each["images"][0].pop("cache") for each in items] for items in answers]
    assert marks == [["miss", "miss"], ["hit", "hit"]]
    images = [[each["images"] for each in items] for items in answers]
    assert images[0] == images[1]


def test_a_stream_of_what_is_known_is_done_at_once(http: httpx.Client) -> None:
    body = RED | {"seed": 62}
    texts = [http.post("/generate/stream", json=body).text for _ in range(2)]
    events = [re.findall(r"^event: (\w+)", text, re.MULTILINE) for text in texts]
    assert (events[0][0], events[0][-1], events[1]) == ("step", "done", ["done"])
    done = [json.loads(text.rsplit("data: ", 1)[1])["images"][0] for text in texts]
    assert done[0]["b64_json"] == done[1]["b64_json"]
    assert [each["cache"] for each in done] == ["miss", "hit"]


def test_openais_stream_of_what_is_known_is_done_at_once(http: httpx.Client) -> None:
    body = {"prompt": "quick", "seed": 63, "stream": True, "partial_images": 2}
    texts = [http.post("/v1/images/generations", json=body).text for _ in range(2)]
    events = [re.findall(r"^event: ([\w.]+)", text, re.MULTILINE) for text in texts]
    assert len(events[0]) == 3
    assert events[1] == ["image_generation.completed"]


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_raw_pixels_are_exact(http: httpx.Client, output_format: str) -> None:
    body = v2("pixels", output_format=output_format, num_images=1)
    answers = [http.post("/v2/models/fake/infer", json=body) for _ in range(2)]
    pixels = [np.frombuffer(each.content[-2 * 64 * 64 * 3 :], np.uint8) for each in answers]
    assert np.array_equal(pixels[0], pixels[1])
    assert list(pixels[0][:3]) == [56, 9, 9]
    assert answers[1].headers["x-cache"] == ("hit" if output_format == "png" else "miss")


def test_all_processes_are_counted_together(http: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        line = re.compile(r'^sdxl_result_cache_total{result="(\w+)"} (.+)$', re.MULTILINE)
        found = line.findall(http.get("/metrics").text)
        return {result: float(value) for result, value in found}

    before = counted()
    for _ in range(4):
        http.post("/generate", json=RED | {"seed": 70})
    after = counted()
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (3, 1)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *[("png", b""), ("png", None), ("json", b"{}"), ("json", b"[]"), ("json", b"null")],
        *[("json", b"[" * 50_000), ("json", None)],
    ],
)
def test_what_is_damaged_is_not_there_in_any_protocol(
    http: httpx.Client, bucket: Bucket, kind: str, content: bytes | None
) -> None:
    """`None` stands for the file of another picture."""
    body = RED | {"seed": 90}
    other = http.post("/generate", json=body | {"seed": 91}).headers["x-image-id"]
    first = http.post("/generate", json=body)
    image_id = first.headers["x-image-id"]
    key = f"{PREFIX}/{image_id}.{kind}"
    if content is None:
        found = bucket.client.get_object(Bucket=bucket.name, Key=f"{PREFIX}/{other}.{kind}")
        content = found["Body"].read()
    bucket.put(key, content)
    paths = ["/images/{}", "/images/{}.png", "/download/{}"]
    paths += ["/images/{}/metadata"] * (kind == "json")
    for path in paths:
        assert http.get(path.format(image_id)).status_code == 404, path
    start = {"prompt": "quick", "image_id": image_id}
    for path in ("/img2img", "/refine"):
        refused = http.post(path, json=start)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "image_not_found")
    again = http.post("/generate", json=body)
    assert (again.status_code, again.headers["x-cache"]) == (200, "miss")
    assert again.content == first.content
    assert again.headers["x-image-id"] != image_id
    damaged = re.search(r"^sdxl_store_damaged_total (.+)$", http.get("/metrics").text, re.MULTILINE)
    assert damaged is not None
    assert float(damaged[1]) >= 5


@contextmanager
def without_the_bucket(bucket: Bucket) -> Iterator[None]:
    """The store is gone while the server runs."""
    for key in keys(bucket):
        bucket.delete(key)
    bucket.client.delete_bucket(Bucket=bucket.name)
    try:
        yield
    finally:
        bucket.client.create_bucket(Bucket=bucket.name)


def test_a_store_that_is_gone_loses_no_picture(
    http: httpx.Client, server: Server, bucket: Bucket
) -> None:
    body = RED | {"seed": 80}
    with without_the_bucket(bucket):
        answer = http.post("/generate", json=body, headers={"X-Request-Id": "unlucky"})
        links = http.post(
            "/v1/images/generations",
            json={"prompt": "quick", "seed": 81, "response_format": "url"},
        )
        info = http.post(
            "/sdapi/v1/txt2img", json={"prompt": "quick", "seed": 82, "send_images": False}
        )
        tensors = http.post("/v2/models/fake/infer", json=v2("image", "image_id"))
    assert Image.open(io.BytesIO(answer.content)).size == (64, 96)
    assert "x-image-id" not in answer.headers
    assert answer.headers["content-disposition"] == 'inline; filename="unlucky.png"'
    [picture] = links.json()["data"]
    assert "url" not in picture
    assert picture["b64_json"]
    assert len(info.json()["images"]) == 1
    assert [len(each["data"][0]) > 0 for each in tensors.json()["outputs"]] == [True, False]
    assert "request unlucky: a picture could not be stored: " in server.output()
    assert "verysecret" not in server.output()
    # And it goes on as soon as there is one again.
    marks = [http.post("/generate", json=body).headers["x-cache"] for _ in range(2)]
    assert marks == ["miss", "hit"]


def test_nothing_was_left_behind(server: Server) -> None:
    time.sleep(0.1)
    for text in ("never retrieved", "never awaited", "Unclosed"):
        assert text not in server.output()
