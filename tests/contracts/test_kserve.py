"""KServe's V1 protocol through its own client, over an engine that draws nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from tests.contracts.conftest import MOST, RUN_S, until_idle, until_running
from tests.support.server import Server

MODEL = "fake"
PREDICT = f"/v1/models/{MODEL}:predict"
CIRCLE = {"prompt": "a red circle", "parameters": {"seed": 5, "width": 64, "height": 96}}


@pytest.fixture(scope="module")
def http(faked: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=faked.url, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Any]:
    kserve = pytest.importorskip("kserve", reason="see tests/contracts/requirements-kserve.txt")
    config = kserve.RESTConfig(protocol="v1", timeout=30)
    async with kserve.InferenceRESTClient(config) as made:
        yield made


def picture(prediction: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(prediction["image"]["b64"])))
    assert image.format == prediction["image"]["format"].upper()
    return image


def red(prediction: dict[str, Any]) -> int:
    """The fake's pictures hold their seed in red."""
    return picture(prediction).getpixel((0, 0))[0]  # type: ignore[index, return-value]


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    return body["error"]


# With the client


async def test_one_instance(client: Any, faked: Server) -> None:
    answer = await client.infer(faked.url, {"instances": [CIRCLE]}, model_name=MODEL)
    [prediction] = answer["predictions"]
    assert (prediction["model_name"], prediction["prompt"]) == ("fake", "a red circle")
    assert prediction["image"]["format"] == "png"
    assert picture(prediction).size == (64, 96)
    assert red(prediction) == 5


@pytest.mark.parametrize("name", ["instances", "inputs"])
async def test_every_instance_has_its_prediction(client: Any, faked: Server, name: str) -> None:
    flat = {"prompt": "b", "seed": 2, "output_format": "jpeg"}
    body = {name: [CIRCLE, flat, "c"], "parameters": {"seed": 3, "width": 72}}
    begin = time.perf_counter()
    answer = await client.infer(faked.url, body, model_name=MODEL)
    assert time.perf_counter() - begin < 3 * RUN_S  # at once, not one after the other
    predictions = answer["predictions"]
    assert [each["prompt"] for each in predictions] == ["a red circle", "b", "c"]
    assert [each["image"]["seed"] for each in predictions] == [5, 2, 3]
    assert [picture(each).width for each in predictions] == [64, 72, 72]
    assert predictions[1]["image"]["format"] == "jpeg"


async def test_several_pictures_of_one_instance(client: Any, faked: Server) -> None:
    body = {"instances": [{"prompt": "a", "seed": 5, "num_images": 2}]}
    [prediction] = (await client.infer(faked.url, body, model_name=MODEL))["predictions"]
    assert [image["seed"] for image in prediction["images"]] == [5, 6]
    assert prediction["image"] == prediction["images"][0]


async def test_the_model_is_ready(client: Any, faked: Server) -> None:
    assert await client.is_model_ready(faked.url, MODEL) is True
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        await client.is_model_ready(faked.url, "nope")


async def test_the_client_shows_our_message(client: Any, faked: Server) -> None:
    with pytest.raises(
        httpx.HTTPStatusError, match=r"instances\.1\.width: got 3, allowed: an int"
    ) as failed:
        await client.infer(faked.url, {"instances": ["b", {"prompt": "a", "width": 3}]}, MODEL)
    assert failed.value.response.status_code == 422
    with pytest.raises(httpx.HTTPStatusError, match="no model named 'nope'"):
        await client.infer(faked.url, {"instances": ["a"]}, model_name="nope")


async def test_a_client_that_leaves_ends_its_call(client: Any, faked: Server) -> None:
    until_idle(faked)
    with pytest.raises(httpx.TimeoutException):
        body = {"instances": [CIRCLE, "b"]}
        await client.infer(faked.url, body, model_name=MODEL, timeout=RUN_S / 4)
    assert until_idle(faked) < RUN_S / 2


# The raw form


@pytest.mark.parametrize("body", [CIRCLE, {"prompt": "a", "seed": 5, "width": 64, "height": 96}])
def test_one_prompt_by_itself_gives_the_picture_itself(http: httpx.Client, body: Any) -> None:
    answer = http.post(PREDICT, json=body)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 96)
    assert (answer.headers["x-seed"], answer.headers["x-model"]) == ("5", "fake")
    assert http.get(f"/images/{answer.headers['x-image-id']}").content == answer.content


def test_it_is_json_where_that_is_asked_for_or_needed(http: httpx.Client) -> None:
    answer = http.post(PREDICT, json=CIRCLE, headers={"Accept": "application/json"})
    assert red(answer.json()["predictions"][0]) == 5
    several = http.post(PREDICT, json={"prompt": "a", "parameters": {"num_images": 2}})
    assert len(several.json()["predictions"][0]["images"]) == 2


# Names, headers


def test_the_model_by_its_tag(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/models/fake:2:predict", json=CIRCLE), 404).startswith("no model")
    assert http.get("/v1/models/fake:1").json()["ready"] is True


def test_request_ids(http: httpx.Client) -> None:
    answer = http.post(PREDICT, json={"instances": [CIRCLE]}, headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("header", "value", "field"),
    [
        ("X-SLO-MS", "soon", "slo_ms"),
        ("X-Priority", "99", "priority"),
        ("X-Request-Id", "a b", "X-Request-Id"),
    ],
)
def test_deadline_and_priority_as_headers(
    http: httpx.Client, header: str, value: str, field: str
) -> None:
    for body in (CIRCLE, {"instances": [CIRCLE]}):
        answer = http.post(PREDICT, json=body, headers={header: value})
        assert field in error_of(answer, 422)
    good = {"X-SLO-MS": "60000", "X-Priority": "3"}
    assert http.post(PREDICT, json={"instances": [CIRCLE]}, headers=good).status_code == 200


# Errors


@pytest.mark.parametrize("body", [b"{", b'{"prompt": NaN}', b"\xff"])
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    answer = http.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
    assert "JSON" in error_of(answer, 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt: got None"),
        (5, "body: got 5"),
        ("a red circle", "body: got 'a red circle'"),
        ({"instances": []}, "instances: got '0 items'"),
        (
            {"instances": ["a"] * (MOST + 1)},
            f"instances: got '{MOST + 1} items', allowed: a list of 1 to {MOST}",
        ),
        ({"instances": {"prompt": "a"}}, "instances: got "),
        ({"inputs": ["a", 5]}, "inputs.1: got 5"),
        ({"instances": ["a"], "inputs": ["a"]}, "inputs: got "),
        ({"instances": ["a"], "signature_name": "x"}, "signature_name: got 'x'"),
        ({"instances": [{"prompt": 5}]}, "instances.0.prompt: got 5"),
        ({"instances": [{"prompt": "a", "stops": 5}]}, "instances.0.stops: got 5"),
        ({"instances": [{"prompt": "a", "width": 1}]}, "instances.0.width: got 1"),
        ({"instances": [{"prompt": "a", "parameters": 5}]}, "instances.0.parameters: got 5"),
        ({"instances": ["a"], "parameters": 5}, "parameters: got 5"),
        ({"instances": [{"prompt": "a", "model": "b"}]}, "instances.0.model: got 'b'"),
        ({"prompt": "a", "parameters": {"sampler": "heun"}}, "parameters.sampler: got 'heun'"),
        ({"prompt": "a", "width": 65}, "width: got 65, allowed: a multiple of 8"),
    ],
)
def test_invalid_fields(http: httpx.Client, body: Any, message: str) -> None:
    assert error_of(http.post(PREDICT, json=body), 422).startswith(message)


def test_unknown_names(http: httpx.Client) -> None:
    body = {"instances": [{"prompt": "a", "loras": [{"name": "nope"}]}]}
    assert "no LoRA named 'nope'; available: striped" in error_of(
        http.post(PREDICT, json=body), 404
    )


def test_one_that_fails_fails_the_call_and_ends_the_others(
    http: httpx.Client, faked: Server
) -> None:
    until_idle(faked)
    begin = time.monotonic()
    answer = http.post(PREDICT, json={"instances": ["a", "full", "b"]})
    assert error_of(answer, 429) == "the queue is full: 64 requests wait"
    assert answer.headers["retry-after"] == "4"
    until_idle(faked)
    assert time.monotonic() - begin < RUN_S


def test_a_deadline_that_cannot_be_met(http: httpx.Client) -> None:
    answer = http.post(PREDICT, json={"instances": ["late"]})
    assert "cannot be met" in error_of(answer, 503)
    assert answer.headers["retry-after"] == "2"


def test_cancel(http: httpx.Client, faked: Server) -> None:
    until_idle(faked)
    with ThreadPoolExecutor(1) as pool:
        body, headers = {"instances": ["slow"] * 3}, {"X-Request-Id": "stop-kserve"}
        call = pool.submit(http.post, PREDICT, json=body, headers=headers)
        until_running(faked, 3)
        assert httpx.post(f"{faked.url}/cancel/stop-kserve").status_code == 200
        assert "cancelled" in error_of(call.result(), 409)


def test_a_bug_keeps_its_text_to_itself(http: httpx.Client, faked: Server) -> None:
    assert "secret" not in error_of(http.post(PREDICT, json={"instances": ["bug"]}), 500)
    assert "RuntimeError: secret detail" in faked.output()


def test_another_kind_of_body(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/cloudevents+json"}
    assert "Content-Type" in error_of(http.post(PREDICT, content=b"{}", headers=headers), 415)


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    assert error_of(http.post(PREDICT, content=b" " * (17 << 20)), 413)


def test_metrics_have_the_protocol(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    assert 'sdxl_requests_total{outcome="ok",protocol="kserve_v1"}' in text
    assert 'sdxl_requests_total{outcome="cancelled",protocol="kserve_v1"}' in text
    assert 'sdxl_requests_in_progress{protocol="kserve_v1"} 0.0' in text


async def test_not_ready(client: Any, loading: Server) -> None:
    assert await client.is_model_ready(loading.url, MODEL) is False
    answer = await asyncio.to_thread(httpx.post, loading.url + PREDICT, json=CIRCLE)
    assert "loading" in error_of(answer, 503)
    assert answer.headers["retry-after"]


def test_nothing_was_left_behind(faked: Server) -> None:
    until_idle(faked)
    assert "Task exception was never retrieved" not in faked.output()
    assert "never awaited" not in faked.output()
