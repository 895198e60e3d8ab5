"""V2, the Open Inference Protocol, through Triton's client and KServe's."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.contracts.conftest import MOST, RUN_S, until_idle, until_running
from tests.support.server import Server

MODEL = "fake"
INFER = f"/v2/models/{MODEL}/infer"
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client(faked: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(faked.url.removeprefix("http://")) as made:
        yield made


@pytest.fixture(scope="module")
def http(faked: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=faked.url, timeout=30) as made:
        yield made


def tensor(name: str, values: Any, *, binary: bool = True) -> triton.InferInput:
    array = np.asarray(values)
    if array.dtype.kind == "U":
        array = array.astype(object)
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def prompts(*values: str) -> triton.InferInput:
    return tensor("prompt", list(values))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def reds(images: Sequence[bytes]) -> list[int]:
    """The fake's pictures hold their seed in red."""
    return [opened(each).getpixel((0, 0))[0] for each in images]  # type: ignore[index]


def document(**fields: Any) -> dict[str, Any]:
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    return {"inputs": [prompt], **fields}


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    message = answer.json()["error"]
    assert isinstance(message, str)
    return message


# Server and models


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fake")
    assert client.is_model_ready("fake", "1")
    assert not client.is_model_ready("fake", "2")
    assert not client.is_model_ready("nope")


def test_not_ready(loading: Server) -> None:
    with triton.InferenceServerClient(loading.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("stub")
        [model] = client.get_model_repository_index()
        assert (model["name"], model["version"], model["state"]) == ("stub", "1", "LOADING")
        with pytest.raises(InferenceServerException, match="loading, not ready") as failed:
            client.infer("stub", [prompts("a")])
    assert failed.value.status() == "503"
    assert httpx.post(loading.url + INFER, json=document()).headers["retry-after"]


def test_metadata(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "sdxl-bento"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("fake")
    assert (model["name"], model["versions"]) == ("fake", ["1"])
    inputs = {each["name"]: each for each in model["inputs"]}
    assert (inputs["prompt"]["datatype"], inputs["prompt"]["shape"]) == ("BYTES", [-1])
    assert (inputs["seed"]["datatype"], inputs["guidance_scale"]["datatype"]) == ("INT64", "FP32")
    assert (inputs["target_size"]["datatype"], inputs["target_size"]["shape"]) == ("INT64", [-1, 2])
    assert {each["name"] for each in model["outputs"]} == {"image", "seed", "image_id", "pixels"}
    with pytest.raises(InferenceServerException, match="no model named 'nope'; available: fake"):
        client.get_model_metadata("nope")


def test_repository(client: triton.InferenceServerClient) -> None:
    assert client.get_model_repository_index() == [
        {"name": "fake", "version": "1", "state": "READY", "reason": ""}
    ]
    client.load_model("fake")
    with pytest.raises(InferenceServerException, match="SDXL_MODELS") as failed:
        client.load_model("nope")
    assert failed.value.status() == "404"
    with pytest.raises(InferenceServerException, match="parameters") as failed:
        client.load_model("fake", config="{}")
    assert failed.value.status() == "422"
    with pytest.raises(InferenceServerException, match="loaded at start, and stay") as failed:
        client.unload_model("fake")
    assert failed.value.status() == "422"
    assert client.is_model_ready("fake")


# Pictures


@pytest.mark.parametrize("binary", [True, False])
def test_a_batch_of_prompts(client: triton.InferenceServerClient, binary: bool) -> None:
    inputs = [
        tensor("prompt", ["a", "ä", "c"], binary=binary),
        tensor("seed", np.array([5, 6, 7], np.int64), binary=binary),
        tensor("width", np.array([72], np.int32), binary=binary),
        tensor("guidance_scale", np.array([[7.5]], np.float32), binary=binary),
    ]
    answer = client.infer("fake", inputs, request_id="mine")
    assert answer.get_response()["id"] == "mine"
    assert answer.get_response()["model_version"] == "1"
    images = answer.as_numpy("image")
    assert (images.shape, reds(images)) == ((3,), [5, 6, 7])
    assert opened(images[0]).size == (72, 64)
    assert answer.as_numpy("seed").tolist() == [5, 6, 7]
    assert len(answer.as_numpy("image_id")[0]) == 28
    assert answer.as_numpy("pixels") is None


def test_a_column_of_prompts(client: triton.InferenceServerClient) -> None:
    inputs = [tensor("prompt", [["a"], ["b"]]), tensor("seed", [[1], [2]])]
    assert client.infer("fake", inputs).as_numpy("seed").tolist() == [1, 2]


def test_only_the_outputs_that_were_asked_for(client: triton.InferenceServerClient) -> None:
    outputs = [
        triton.InferRequestedOutput("image", binary_data=False),
        triton.InferRequestedOutput("pixels", binary_data=True),
    ]
    answer = client.infer("fake", [prompts("a", "b"), tensor("seed", [3])], outputs=outputs)
    assert [each["name"] for each in answer.get_response()["outputs"]] == ["image", "pixels"]
    pixels = answer.as_numpy("pixels")
    assert (pixels.shape, pixels.dtype) == ((2, 64, 64, 3), np.uint8)
    image = opened(base64.b64decode(answer.as_numpy("image")[0]))
    assert np.array_equal(np.asarray(image), pixels[0])
    assert pixels[0, 0, 0, 0] == 3


def test_several_pictures_a_row(client: triton.InferenceServerClient) -> None:
    inputs = [prompts("a", "b"), tensor("num_images", [2]), tensor("seed", [10, 20])]
    answer = client.infer("fake", inputs)
    assert answer.as_numpy("seed").tolist() == [[10, 11], [20, 21]]
    assert answer.as_numpy("image").shape == (2, 2)


def test_parameters_are_for_all_rows(client: triton.InferenceServerClient) -> None:
    shared = {"output_format": "jpeg", "width": 80, "loras": "[]", "target_size": "[64, 64]"}
    answer = client.infer("fake", [prompts("a", "b")], parameters=shared)
    for image in map(opened, answer.as_numpy("image")):
        assert (image.format, image.width) == ("JPEG", 80)


def test_deadline_and_priority(http: httpx.Client, client: triton.InferenceServerClient) -> None:
    client.infer("fake", [prompts("a")], timeout=60_000_000, priority=1)
    for name, value, message in (
        ("priority", 22, "priority: got 22"),
        ("timeout", -1, "timeout: got -1"),
        ("timeout", 7_200_000_000, "timeout: got 7200000000"),  # two hours
    ):
        answer = http.post(INFER, json=document(parameters={name: value}))
        assert error_of(answer, 422).startswith(message)
    for header, field in (("X-SLO-MS", "slo_ms"), ("X-Priority", "priority")):
        answer = http.post(INFER, json=document(), headers={header: "soon"})
        assert error_of(answer, 422).startswith(field)


def test_they_run_at_once(client: triton.InferenceServerClient, faked: Server) -> None:
    until_idle(faked)
    answer = client.infer("fake", [prompts(*"abcdefgh"), tensor("seed", list(range(8)))])
    assert reds(answer.as_numpy("image")) == list(range(8))
    stats = httpx.get(f"{faked.url}/metrics").text
    assert 'sdxl_requests_total{outcome="ok",protocol="open_inference"}' in stats


def test_binary_without_a_content_type(http: httpx.Client) -> None:
    raw = struct.pack("<I", 1) + b"a"
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES"}
    prompt["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [prompt], "outputs": [{"name": "seed"}]}).encode()
    headers = {HEADER: str(len(head))}
    request = http.build_request("POST", INFER, content=head + raw, headers=headers)
    request.headers.pop("content-type", None)
    assert http.send(request).json()["outputs"][0]["data"] == [7]


# KServe's client


@pytest_asyncio.fixture
async def kserve_client() -> AsyncIterator[Any]:
    kserve = pytest.importorskip("kserve", reason="see tests/contracts/requirements-kserve.txt")
    config = kserve.RESTConfig(protocol="v2", timeout=30)
    async with kserve.InferenceRESTClient(config) as made:
        yield made


async def test_kserve_health(kserve_client: Any, faked: Server, loading: Server) -> None:
    assert await kserve_client.is_server_live(faked.url) is True
    assert await kserve_client.is_server_ready(faked.url) is True
    assert await kserve_client.is_model_ready(faked.url, "fake") is True
    assert await kserve_client.is_model_ready(faked.url, "nope") is False
    assert await kserve_client.is_model_ready(loading.url, "stub") is False


@pytest.mark.parametrize("binary", [True, False])
async def test_kserve_infer(kserve_client: Any, faked: Server, binary: bool) -> None:
    import kserve

    prompt = kserve.InferInput("prompt", [2], "BYTES")
    prompt.set_data_from_numpy(np.array(["a", "b"], object), binary_data=binary)
    seed = kserve.InferInput("seed", [2], "INT64")
    seed.set_data_from_numpy(np.array([3, 4], np.int64), binary_data=binary)
    request = kserve.InferRequest("fake", [prompt, seed], request_id="r1")
    answer = await kserve_client.infer(faked.url, request, model_name="fake")
    outputs = {output.name: output for output in answer.outputs}
    assert answer.id == "r1"
    assert reds([base64.b64decode(each) for each in outputs["image"].data]) == [3, 4]
    assert outputs["seed"].data == [3, 4]


async def test_kserve_shows_our_message(kserve_client: Any, faked: Server) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"inputs: got 'x', allowed: one of prompt"):
        body = document()
        body["inputs"].append({"name": "x", "shape": [1], "datatype": "INT64", "data": [1]})
        await kserve_client.infer(faked.url, body, model_name="fake")


# Errors


@pytest.mark.parametrize("body", [b"{", b'{"inputs": NaN}', b"\xff"])
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    assert "JSON" in error_of(http.post(INFER, content=body), 400)


def one(**changes: Any) -> dict[str, Any]:
    """A request with a wrong second input."""
    wrong = {"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]} | changes
    body = document()
    body["inputs"].append({key: value for key, value in wrong.items() if value is not None})
    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "body: got []"),
        ({}, "inputs: got None"),
        ({"inputs": []}, "inputs: got [], allowed: prompt among them"),
        ({"inputs": [5]}, "inputs.0: got 5"),
        (document(parameters=5), "parameters: got 5"),
        (document(parameters={"stops": 5}), "stops: got 5"),
        (document(parameters={"model": "other"}), "model: got 'other'"),
        (document(parameters={"loras": "striped"}), "loras: got 'striped'"),
        (document(outputs="image"), "outputs: got 'image'"),
        (document(outputs=[{"name": "x"}]), "outputs.0.name: got 'x'"),
        (document(outputs=[{"name": "seed", "parameters": 5}]), "outputs.0.parameters: got 5"),
        (document(outputs=[{"name": "pixels"}]), "pixels: got 'JSON'"),
        (one(name="x"), "inputs: got 'x'"),
        (one(datatype="BF16"), "seed.datatype: got 'BF16'"),
        (one(datatype=["INT64"]), "seed.datatype: got ['INT64']"),
        (one(shape=[-1]), "seed.shape: got [-1]"),
        (one(shape=5), "seed.shape: got 5"),
        (one(data=["1"]), "seed.data: got '1'"),
        (one(data=[1.5]), "seed.data: got 1.5"),
        (one(data=[True]), "seed.data: got True"),
        (one(data=None), "seed.data: got '0 elements'"),
        (one(data=[1, 2]), "seed.data: got '2 elements'"),
        (one(data=[1, 2], shape=[2]), "seed.shape: got [2]"),
        (one(parameters=5), "seed.parameters: got 5"),
        (one(data=[-1]), "seed: got -1"),
        (one(name="width", data=[3]), "width: got 3"),
        (one(name="width", data=[65]), "width: got 65, allowed: a multiple of 8"),
        (one(name="sampler", datatype="BYTES", data=["heun"]), "sampler: got 'heun'"),
        (one(name="loras", datatype="BYTES", data=["x"]), "loras: got 'x'"),
        (one(name="target_size", data=[64], shape=[1]), "target_size.shape: got [1]"),
        (one(name="prompt", data=[5]), "inputs: got 'prompt', allowed: each field once"),
    ],
)
def test_invalid_requests(http: httpx.Client, body: Any, message: str) -> None:
    assert error_of(http.post(INFER, json=body), 422).startswith(message)


def test_which_row_is_wrong(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"width \(row 1\): got 3") as failed:
        client.infer("fake", [prompts("a", "b"), tensor("width", [64, 3])])
    assert failed.value.status() == "422"
    several = [prompts("a", "b"), tensor("width", [64, 72])]
    with pytest.raises(InferenceServerException, match="pixels: got 'several sizes'"):
        client.infer("fake", several, outputs=[triton.InferRequestedOutput("pixels")])
    with pytest.raises(InferenceServerException, match="num_images"):
        client.infer("fake", [prompts("a", "b"), tensor("num_images", [1, 2])])
    with pytest.raises(InferenceServerException, match=f"1 to {MOST}"):
        client.infer("fake", [prompts(*["a"] * (MOST + 1))])


@pytest.mark.parametrize(
    ("header", "size", "raw", "message"),
    [
        ("x", 5, b"\1\0\0\0a", HEADER),
        ("999999", 5, b"\1\0\0\0a", HEADER),
        (None, 9, b"\1\0\0\0a", "prompt.binary_data_size"),
        (None, -1, b"\1\0\0\0a", "prompt.binary_data_size"),
        (None, 5, b"\1\0\0\0abc", "body: got '2 bytes too many'"),
        (None, 5, b"\2\0\0\0a", "prompt.data: got '1 of 2 bytes'"),
    ],
)
def test_malformed_binary(
    http: httpx.Client, header: str | None, size: int, raw: bytes, message: str
) -> None:
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [{**prompt, "parameters": {"binary_data_size": size}}]}).encode()
    length = header or str(len(head))
    answer = http.post(INFER, content=head + raw, headers={HEADER: length})
    assert error_of(answer, 400).startswith(message)


def test_text_that_is_none(http: httpx.Client) -> None:
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [{**prompt, "parameters": {"binary_data_size": 5}}]}).encode()
    answer = http.post(INFER, content=head + b"\1\0\0\0\xff", headers={HEADER: str(len(head))})
    assert error_of(answer, 422).startswith("prompt.data: got")


@pytest.mark.parametrize(
    ("inputs", "model", "status", "message"),
    [
        ([prompts("a")], "nope", "404", "no model named 'nope'"),
        ([prompts("a"), tensor("loras", ['[{"name": "nope"}]'])], "fake", "404", "no LoRA named"),
        ([prompts("a", "full")], "fake", "429", "the queue is full"),
        ([prompts("late")], "fake", "503", "cannot be met"),
        ([prompts("bug")], "fake", "500", "unexpected error"),
    ],
)
def test_what_the_client_raises(
    client: triton.InferenceServerClient, inputs: Any, model: str, status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as failed:
        client.infer(model, inputs)
    assert failed.value.status() == status


def test_overload_says_when_to_try_again(http: httpx.Client) -> None:
    body = document()
    body["inputs"][0]["data"] = ["full"]
    assert http.post(INFER, json=body).headers["retry-after"] == "4"


def test_other_bodies(http: httpx.Client, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Content-Encoding") as failed:
        client.infer("fake", [prompts("a")], request_compression_algorithm="gzip")
    assert failed.value.status() == "415"
    assert error_of(http.post(INFER, content=b" " * (17 << 20)), 413)
    assert error_of(http.post("/v2/nowhere"), 404)


def test_cancel(http: httpx.Client, faked: Server) -> None:
    until_idle(faked)
    body = document()
    body["inputs"][0] |= {"shape": [2], "data": ["slow", "slow"]}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(http.post, INFER, json=body, headers={"X-Request-Id": "stop-v2"})
        until_running(faked, 2)
        assert httpx.post(f"{faked.url}/cancel/stop-v2").status_code == 200
        assert "cancelled" in error_of(call.result(), 409)


async def test_a_client_that_leaves_ends_its_call(faked: Server) -> None:
    await asyncio.to_thread(until_idle, faked)
    body = document()
    body["inputs"][0] |= {"shape": [2], "data": ["a", "b"]}
    async with httpx.AsyncClient(base_url=faked.url, timeout=RUN_S / 4) as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post(INFER, json=body)
    assert await asyncio.to_thread(until_idle, faked) < RUN_S / 2
