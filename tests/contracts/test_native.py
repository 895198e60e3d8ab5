"""The native protocol through its real clients, over an engine that draws nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException, NotFound
from PIL import Image

from sdxl_bento.sampler_names import SAMPLERS
from tests.contracts.conftest import RUN_S, until_running
from tests.support.server import Server

SLOW = {"prompt": "a slow circle", "width": 64, "height": 64}
GENERATE = {"prompt": "a red circle", "seed": 5, "width": 64, "height": 96}


@pytest.fixture(scope="module")
def server(faked: Server) -> Server:
    return faked


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def png(http: httpx.Client) -> bytes:
    return http.post("/generate", json=GENERATE).content


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert {"type", "message", "field", "value", "allowed", "request_id"} <= body.keys()
    assert isinstance(body, dict)
    return body


# One picture, several pictures


def test_one_picture_comes_as_it_is(http: httpx.Client) -> None:
    answer = http.post("/generate", json=GENERATE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    picture = opened(answer.content)
    assert picture.size == (64, 96)
    described = json.loads(picture.info["sdxl-bento"])
    assert (described["prompt"], described["seed"]) == ("a red circle", 5)


def test_headers(http: httpx.Client) -> None:
    answer = http.post("/generate", json=GENERATE, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-seed"] == "5"
    assert answer.headers["x-model"] == "fake"
    assert len(answer.headers["x-image-id"]) == 28
    stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["queue", "encode", "base", "refine", "decode", "total"]
    assert http.post("/generate", json=GENERATE).headers["x-request-id"] != "mine-1"


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_other_formats(http: httpx.Client, name: str) -> None:
    answer = http.post("/generate", json=GENERATE | {"output_format": name})
    assert answer.headers["content-type"] == f"image/{name}"
    assert opened(answer.content).format == name.upper()


def test_several_pictures_come_as_json(http: httpx.Client) -> None:
    answer = http.post("/generate", json=GENERATE | {"num_images": 3}).json()
    assert [image["seed"] for image in answer["images"]] == [5, 6, 7]
    for image in answer["images"]:
        picture = opened(base64.b64decode(image["b64_json"]))
        assert picture.getpixel((0, 0)) == (image["seed"], 9, 9)
        assert (image["format"], image["width"], image["height"]) == ("png", 64, 96)
    assert answer["params"]["sampler"] == "euler"
    assert answer["timings"]["total_ms"] >= RUN_S * 1e3
    assert answer["model"] == "fake"


def test_json_for_one_picture_on_request(http: httpx.Client) -> None:
    headers = {"Accept": "application/json"}
    assert len(http.post("/generate", json=GENERATE, headers=headers).json()["images"]) == 1


def test_curl_needs_no_content_type(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    body = json.dumps(GENERATE).encode()
    assert http.post("/generate", content=body, headers=headers).status_code == 200


# BentoML's clients


def test_sync_client(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url) as client:
        path = client.generate(**GENERATE, original_size=[64, 64], loras=[])
        assert opened(path.read_bytes()).size == (64, 96)
        assert path.suffix == ".png"
        redrawn = client.img2img(prompt="a", image=path, strength=0.5)
        assert opened(redrawn.read_bytes()).size == (64, 96)
        results = client.generate_batch(requests=[GENERATE, {"prompt": 5}])
        assert [list(result)[-1] for result in results] == ["timings", "error"]


async def test_async_client(server: Server) -> None:
    async with bentoml.AsyncHTTPClient(server.url) as client:
        calls = asyncio.gather(*(client.generate(**SLOW | {"seed": seed}) for seed in range(4)))
        await asyncio.to_thread(until_running, server, 4)  # at once, not one after the other
        paths = await calls
        colours = [opened(path.read_bytes()).getpixel((0, 0))[0] for path in paths]
        assert colours == [0, 1, 2, 3]


def test_clients_raise_our_message(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url) as client:
        with pytest.raises(NotFound, match="no LoRA named 'nope'"):
            client.generate(prompt="a", loras=[{"name": "nope"}])
        with pytest.raises(BentoMLException, match="the queue is full"):
            client.generate(prompt="full")


# Errors


@pytest.mark.parametrize("body", [b"{", b'{"prompt": "a",}', b'{"prompt": NaN}', b"\xff", b"a=b"])
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["type"] == "malformed_body"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": 5}, "prompt"),
        ({"width": 1}, "width"),
        ({"width": 65}, "width"),
        ({"stops": 5}, "stops"),
        ({"sampler": "heun"}, "sampler"),
        ({"loras": [{"name": "a", "scale": 99}]}, "loras.0.scale"),
    ],
)
def test_invalid_fields(http: httpx.Client, fields: dict[str, Any], field: str) -> None:
    error = error_of(http.post("/generate", json={"prompt": "a"} | fields), 422)
    assert (error["type"], error["field"]) == ("invalid_input", field)
    assert error["allowed"]
    assert error["request_id"]


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"model": "nope"}, "model_not_found", "model"),
        ({"loras": [{"name": "nope"}]}, "adapter_not_found", "loras"),
    ],
)
def test_unknown_names(http: httpx.Client, fields: dict[str, Any], kind: str, field: str) -> None:
    error = error_of(http.post("/generate", json={"prompt": "a"} | fields), 404)
    assert (error["type"], error["field"], error["value"]) == (kind, field, "nope")
    assert error["allowed"].startswith("one of: ")


def test_overload_says_when_to_try_again(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "full"})
    assert error_of(answer, 429)["retry_after_s"] == 3.2
    assert answer.headers["retry-after"] == "4"


def test_a_deadline_that_cannot_be_met(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "late"})
    error = error_of(answer, 503)
    assert (error["type"], error["retry_after_s"]) == ("deadline_infeasible", 1.5)
    assert answer.headers["retry-after"] == "2"


def test_a_server_that_is_not_ready(loading: Server, png: bytes) -> None:
    picture = base64.b64encode(png).decode()
    for path, body in (
        ("generate", GENERATE),
        ("generate/stream", GENERATE),
        ("img2img", {"prompt": "a", "image": picture}),
        ("refine", {"prompt": "a", "image": picture}),
    ):
        answer = httpx.post(f"{loading.url}/{path}", json=body)
        assert error_of(answer, 503)["type"] == "not_ready"
        assert answer.headers["retry-after"] == "2"
    [result] = httpx.post(f"{loading.url}/generate_batch", json={"requests": [GENERATE]}).json()
    assert result["error"]["status"] == 503


def test_a_bug_keeps_its_text_to_itself(http: httpx.Client, server: Server) -> None:
    answer = http.post("/generate", json={"prompt": "bug"}, headers={"X-Request-Id": "bug-7"})
    error = error_of(answer, 500)
    assert error["request_id"] == "bug-7"
    assert "secret" not in answer.text
    assert "RuntimeError: secret detail" in server.output()


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    assert error_of(http.post("/generate", json={"prompt": "x" * 2_000_000}), 413)

    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(30):
            yield b"x" * 65536

    assert error_of(http.post("/generate", content=chunks()), 413)["type"] == "body_too_large"


def test_another_kind_of_body(http: httpx.Client) -> None:
    answer = http.post("/generate", content=b"a,b", headers={"Content-Type": "text/csv"})
    assert error_of(answer, 415)["field"] == "Content-Type"


def test_errors_before_our_code_look_alike(http: httpx.Client) -> None:
    assert error_of(http.get("/nowhere"), 404)["type"] == "not_found"
    assert error_of(http.get("/generate"), 405)["type"] == "method_not_allowed"
    for path, pointer in (
        ("/txt2img", "; POST /generate draws from a prompt"),
        ("/generat", "; the nearest is /generate"),
        ("/sampler", "; the nearest is /samplers"),
        ("/nowhere", ""),
    ):
        message = error_of(http.post(path, json={}), 404)["message"]
        assert message.startswith(f"no route POST {path}{pointer}")


@pytest.mark.parametrize(
    ("method", "path", "pointer"),
    [
        ("POST", "/txt2img", "POST /generate"),
        ("GET", "/sampler", "the nearest is /samplers"),
        ("POST", "/sdapi/v1/extra-single-image", "no upscalers"),
        ("POST", "/v2/models/fake/generate", "/infer"),
    ],
)
def test_addresses_of_other_servers(
    http: httpx.Client, method: str, path: str, pointer: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 404
    assert pointer in answer.text


def test_addresses_that_are_nearly_right(http: httpx.Client) -> None:
    for method, path in (("GET", "/generate"), ("POST", "/samplers"), ("PUT", "/livez")):
        assert http.request(method, path).status_code == 405, path
    for path in ("/generate/", "/samplers/", "/ui"):
        assert http.post(path, json=GENERATE).has_redirect_location, path
    assert http.get("/livez").status_code == http.get("/readyz").status_code == 200


def test_a_page_of_another_site_may_look_and_not_send(http: httpx.Client) -> None:
    page = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    for path, form in (("/generate", {"prompt": "quick"}), ("/cancel/x", {})):
        error = error_of(http.post(path, data=form, headers=page), 403)
        assert (error["type"], error["field"]) == ("cross_origin", "Origin")
    assert http.get("/models", headers=page).status_code == 200
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert http.post("/generate", data={"prompt": "quick"}, headers=own).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "field"),
    [
        ("X-SLO-MS", "soon", "slo_ms"),
        ("X-Priority", "99", "priority"),
        ("X-Request-Id", "a b", "X-Request-Id"),
    ],
)
def test_bad_headers(http: httpx.Client, header: str, value: str, field: str) -> None:
    answer = http.post("/generate", json=GENERATE, headers={header: value})
    assert error_of(answer, 422)["field"] == field
    body = GENERATE | {"slo_ms": 60_000, "priority": 1}  # which would win
    for path, sent in (("/generate", body), ("/generate_batch", {"requests": [body]})):
        answer = http.post(path, json=sent, headers={header: value})
        assert error_of(answer, 422)["field"] == field


def test_headers_in_place_of_fields(http: httpx.Client) -> None:
    headers = {"X-SLO-MS": "5000", "X-Priority": "3", "Accept": "application/json"}
    params = http.post("/generate", json=GENERATE, headers=headers).json()["params"]
    assert (params["slo_ms"], params["priority"]) == (5000, 3)
    params = http.post("/generate", json=GENERATE | {"priority": -2}, headers=headers).json()
    assert params["params"]["priority"] == -2


# Batches


def test_a_batch_has_its_errors_inside(http: httpx.Client) -> None:
    items = [GENERATE, {"prompt": 5}, 7, {"prompt": "full"}, {"prompt": "bug"}, GENERATE]
    results = http.post("/generate_batch", json={"requests": items}).json()
    statuses = [result.get("error", {}).get("status", 200) for result in results]
    assert statuses == [200, 422, 422, 429, 500, 200]
    assert results[0]["images"][0]["seed"] == 5
    assert results[1]["error"]["field"] == "prompt"


def test_a_long_batch_is_split_and_comes_back_in_order(http: httpx.Client) -> None:
    items = [GENERATE | {"seed": seed, "output_format": "jpeg"} for seed in range(40)]
    results = http.post("/generate_batch", json={"requests": items}).json()
    assert [result["images"][0]["seed"] for result in results] == list(range(40))


def test_batches_of_several_callers(http: httpx.Client) -> None:
    def call(first: int) -> list[int]:
        items = [GENERATE | {"seed": first + i} for i in range(3)]
        results = http.post("/generate_batch", json={"requests": items}).json()
        return [result["images"][0]["seed"] for result in results]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, range(0, 40, 10)))
    assert answers == [[first, first + 1, first + 2] for first in range(0, 40, 10)]


@pytest.mark.parametrize(
    "body", [{}, {"requests": []}, {"requests": 5}, [], {"requests": [{}] * 300}]
)
def test_a_batch_that_is_none(http: httpx.Client, body: object) -> None:
    error = error_of(http.post("/generate_batch", json=body), 422)
    assert error["field"] == "requests"


def test_a_batch_of_malformed_json(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post("/generate_batch", content=b'{"requests": [', headers=headers)
    assert error_of(answer, 400)["type"] == "malformed_body"


# Pictures in


def test_image_to_image_as_form_and_as_base64(http: httpx.Client, png: bytes) -> None:
    form = http.post("/img2img", data={"prompt": "a", "strength": "0.4"}, files={"image": png})
    assert Image.open(io.BytesIO(form.content)).size == (64, 96)
    text = base64.b64encode(png).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        answer = http.post("/img2img", json={"prompt": "a", "image": image})
        assert opened(answer.content).size == (64, 96)


def test_refining_a_picture_of_the_store(http: httpx.Client) -> None:
    image_id = http.post("/generate", json=GENERATE).headers["x-image-id"]
    answer = http.post("/refine", json={"prompt": "a", "image_id": image_id})
    assert opened(answer.content).size == (64, 96)
    error = error_of(http.post("/refine", json={"prompt": "a", "image_id": "x" * 22}), 404)
    assert error["type"] == "image_not_found"


@pytest.mark.parametrize(
    "image", [None, 5, "http://127.0.0.1/x.png", "file:///etc/passwd", "AAAA", ""]
)
def test_bad_pictures(http: httpx.Client, image: object) -> None:
    error = error_of(http.post("/img2img", json={"prompt": "a", "image": image}), 422)
    assert error["field"] == "image"


def test_a_picture_with_too_many_pixels(http: httpx.Client) -> None:
    out = io.BytesIO()
    Image.new("1", (2000, 1000)).save(out, "PNG")
    answer = http.post("/img2img", data={"prompt": "a"}, files={"image": out.getvalue()})
    assert error_of(answer, 413)["field"] == "image"


def test_a_broken_form(http: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = http.post("/img2img", content=b"--x\r\nnonsense", headers=headers)
    assert answer.status_code in (400, 422)
    assert error_of(answer, answer.status_code)


# Pictures out, lists, pages


def test_stored_pictures(http: httpx.Client) -> None:
    made = http.post("/generate", json=GENERATE)
    image_id = made.headers["x-image-id"]
    for path, kind in ((f"/images/{image_id}", "inline"), (f"/download/{image_id}.png", "attach")):
        answer = http.get(path)
        assert answer.content == made.content
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"].startswith(kind)
        assert answer.headers["x-seed"] == "5"
    assert error_of(http.get("/images/nope"), 404)["type"] == "image_not_found"


def test_lists(http: httpx.Client) -> None:
    assert http.get("/models").json()["models"][0]["name"] == "fake"
    assert http.get("/loras").json()["loras"][0]["name"] == "striped"
    assert http.get("/samplers").json() == {"samplers": list(SAMPLERS)}
    stats = http.get("/stats").json()
    assert (stats["state"], stats["running"]) == ("ready", 0)


def test_pages(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in (page.text, http.get("/docs").text):
        assert not re.search(r"""(https?:)?//\w|@import|url\(""", text)  # nothing from elsewhere


def test_metrics(http: httpx.Client) -> None:
    http.post("/generate", json=GENERATE)
    http.post("/generate", json={})
    text = http.get("/metrics").text
    assert 'sdxl_requests_total{outcome="ok",protocol="native"}' in text
    assert 'sdxl_requests_total{outcome="invalid",protocol="native"}' in text
    assert 'sdxl_stage_seconds_count{stage="base"}' in text
    assert 'sdxl_requests_in_progress{protocol="native"} 0.0' in text
    assert 'sdxl_pictures{state="waiting"} 0.0' in text
    for phase in ("load", "warm_up"):
        assert f'sdxl_model_start_seconds{{model="fake",phase="{phase}"}}' in text


# Calls that end early


def _running(http: httpx.Client) -> int:
    running: int = http.get("/stats").json()["running"]
    return running


def _until_idle(http: httpx.Client) -> None:
    deadline = time.monotonic() + 5
    while _running(http):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", GENERATE),
        ("/generate/stream", GENERATE),
        ("/generate_batch", {"requests": [GENERATE]}),
    ],
)
def test_a_client_that_leaves_ends_its_call(http: httpx.Client, path: str, body: Any) -> None:
    _until_idle(http)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{http.base_url}{path}", json=body, timeout=RUN_S / 8)
    begin = time.monotonic()
    _until_idle(http)
    assert time.monotonic() - begin < RUN_S / 2


def test_cancel(http: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        headers = {"X-Request-Id": "stop-me"}
        call = pool.submit(http.post, "/generate", json=SLOW, headers=headers)
        while not _running(http):
            time.sleep(0.01)
        assert http.post("/cancel/stop-me").json()["cancelled"] is True
        error = error_of(call.result(), 409)
    assert (error["type"], error["request_id"]) == ("request_cancelled", "stop-me")
    assert error_of(http.post("/cancel/stop-me"), 404)["type"] == "request_not_found"


@pytest.mark.parametrize("name", ["stop-all", "stop-all.1"])
def test_cancel_a_batch_or_one_of_it(http: httpx.Client, name: str) -> None:
    _until_idle(http)
    with ThreadPoolExecutor(1) as pool:
        first = SLOW if name == "stop-all" else GENERATE | {"prompt": "quick"}
        body, headers = {"requests": [first, SLOW]}, {"X-Request-Id": "stop-all"}
        call = pool.submit(http.post, "/generate_batch", json=body, headers=headers)
        while _running(http) < (2 if name == "stop-all" else 1):
            time.sleep(0.01)
        assert http.post(f"/cancel/{name}").json()["cancelled"] is True
        results = call.result().json()
    statuses = [result.get("error", {}).get("status", 200) for result in results]
    assert statuses == ([409, 409] if name == "stop-all" else [200, 409])


# Progress


def _events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: ")]
    lines = [block.split("\n") for block in blocks]
    return [(name[7:], json.loads(data[6:])) for name, data in lines]


def test_stream(http: httpx.Client) -> None:
    answer = http.post("/generate/stream", json=GENERATE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _events(answer)
    assert [name for name, _ in events] == ["step", "preview"] * 4 + ["done"]
    assert [data["step"] for name, data in events if name == "step"] == [1, 2, 3, 4]
    assert opened(base64.b64decode(events[1][1]["jpeg"])).format == "JPEG"
    assert events[-1][1]["images"][0]["seed"] == 5


def test_stream_comes_as_it_happens(http: httpx.Client) -> None:
    begin = time.perf_counter()
    with http.stream("POST", "/generate/stream", json=GENERATE) as answer:
        first = next(answer.iter_lines())
        assert first == "event: step"
        assert time.perf_counter() - begin < RUN_S


def test_stream_of_an_error(http: httpx.Client) -> None:
    assert error_of(http.post("/generate/stream", json={"prompt": 5}), 422)
    refused = http.post("/generate/stream", json={"prompt": "full"})
    assert error_of(refused, 429)["type"] == "overloaded"
    assert refused.headers["retry-after"] == "4"
    assert error_of(http.post("/generate/stream", json={"prompt": "a", "model": "nope"}), 404)


def test_an_error_after_the_first_event_is_an_event(http: httpx.Client) -> None:
    headers = {"X-Request-Id": "stop-stream"}
    with http.stream("POST", "/generate/stream", json=SLOW, headers=headers) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: step"
        assert httpx.post(f"{http.base_url}/cancel/stop-stream").status_code == 200
        rest = list(lines)
    name, data = rest[-3:-1] if not rest[-1] else rest[-2:]
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (error["type"], error["status"]) == ("request_cancelled", 409)


def test_many_threads_at_once(http: httpx.Client) -> None:
    barrier = threading.Barrier(16)

    def call(seed: int) -> tuple[int, ...]:
        barrier.wait()
        answer = http.post("/generate", json=GENERATE | {"seed": seed})
        return opened(answer.content).getpixel((0, 0))  # type: ignore[return-value]

    with ThreadPoolExecutor(16) as pool:
        assert [pixel[0] for pixel in pool.map(call, range(16))] == list(range(16))


def test_nothing_was_left_behind(http: httpx.Client, server: Server, tmp_path: Path) -> None:
    _until_idle(http)
    assert "Task exception was never retrieved" not in server.output()
    assert "never awaited" not in server.output()
