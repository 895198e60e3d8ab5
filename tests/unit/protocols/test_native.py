"""The native protocol: bodies, answers, events, and the routes in this process."""

from __future__ import annotations

import base64
import io
import json
from datetime import datetime
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.encode import encode
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.bodies import MAX_BATCH_ITEMS, PICTURE_FIELDS
from sdxl_bento.protocols.native import schema
from sdxl_bento.protocols.native.answers import answer_json, error_json
from sdxl_bento.protocols.native.fields import BatchBody, GenerateBody, ImageBody
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.results import Generation, Progress, Timings
from tests.unit.protocols.conftest import Bed, events, png, png_base64

RED = {"prompt": "quick", "seed": 5}


# Answers


def answer(*cached: bool | None, image_ids: Any = ("i", "j")) -> Answer:
    fields = {"model": "m", "width": 64, "height": 72, "sampler": "ddim"}
    params = ResolvedParams(prompt="a", seed=3, **fields)  # type: ignore[arg-type]
    order = Resolved("generate", params)
    pictures = tuple(
        Picture(b"\xff", "webp", image_ids[index], 3 + index, 64, 72, index, hit)
        for index, hit in enumerate(cached)
    )
    timings = Timings(0.001, 0.00206, 1, 0, 0.25, 1.5)
    return Answer(Generation("r", order, (), timings), pictures)


def test_an_answer() -> None:
    image = {"format": "webp", "seed": 3, "image_id": "i", "width": 64, "height": 72}
    body = answer_json(answer(None))
    assert body == {
        "id": "i",
        "request_id": "r",
        "model": "m",
        "images": [{"b64_json": "/w==", **image}],
        "params": answer(None).order.params.model_dump(mode="json"),
        "timings": {
            "queue_ms": 1.0,
            "encode_ms": 2.1,
            "base_ms": 1000.0,
            "refine_ms": 0.0,
            "decode_ms": 250.0,
            "total_ms": 1500.0,
        },
    }
    assert body["params"]["num_inference_steps"] == 25
    cached = answer_json(answer(True, False), with_files=False)
    assert cached["images"] == [
        image | {"cache": "hit"},
        image | {"cache": "miss", "seed": 4, "image_id": "j"},
    ]


def test_an_error_in_a_batch() -> None:
    assert error_json(InvalidInput("width", 3, "more"), "r") == {
        "error": {
            "type": "invalid_input",
            "message": "width: got 3, allowed: more",
            "field": "width",
            "value": 3,
            "allowed": "more",
            "request_id": "r",
            "status": 422,
        }
    }
    assert error_json(Overloaded("full", 2), "r")["error"]["retry_after_s"] == 2


# Routes that draw


def test_one_picture(http: TestClient) -> None:
    answer = http.post("/generate", json=RED, headers={"X-Request-Id": "r"})
    image_id = answer.headers["x-image-id"]
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == f'inline; filename="{image_id}.png"'
    assert answer.headers["x-request-id"] == "r"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-model"] == "fake"
    assert [each.split(";")[0] for each in answer.headers["server-timing"].split(", ")] == [
        *("queue", "encode", "base", "refine", "decode", "total")
    ]
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


def test_a_picture_without_a_store(tmp_path: Any) -> None:
    bed = Bed(tmp_path)
    bed.pictures._store = None
    with TestClient(bed.app) as http:
        answer = http.post(
            "/generate", json=RED | {"output_format": "jpeg"}, headers={"X-Request-Id": "r"}
        )
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"] == 'inline; filename="r.jpeg"'
    assert "x-image-id" not in answer.headers


@pytest.mark.parametrize(
    ("body", "accept", "count"),
    [
        ({"num_images": 2}, "*/*", 2),
        ({}, "application/json", 1),
        ({}, "image/*, application/json", 1),
    ],
)
def test_json(http: TestClient, body: dict[str, Any], accept: str, count: int) -> None:
    answer = http.post("/generate", json=RED | body, headers={"Accept": accept})
    result = answer.json()
    assert [each["seed"] for each in result["images"]] == [5, 6][:count]
    assert answer.headers["x-seed"] == "5, 6"[: 3 * count - 2]
    ids = [each["image_id"] for each in result["images"]]
    assert (result["id"], answer.headers["x-image-id"]) == (ids[0], ", ".join(ids))


@pytest.mark.parametrize(("path", "task"), [("/img2img", "img2img"), ("/refine", "refine")])
def test_redrawing(http: TestClient, bed: Bed, path: str, task: str) -> None:
    data_url = f"data:image/png;base64,{png_base64()}"
    image_id = http.post("/generate", json=RED | {"width": 72}).headers["x-image-id"]
    for request, size in (
        ({"files": {"image": png()}, "data": {"prompt": "1", "strength": "0.5"}}, (64, 72)),
        ({"json": {"prompt": "1", "strength": 0.5, "image": png_base64()}}, (64, 72)),
        ({"json": {"prompt": "1", "strength": 0.5, "image": data_url}}, (64, 72)),
        ({"json": {"prompt": "1", "strength": 0.5, "image_id": image_id}}, (72, 64)),
        ({"json": {"prompt": "1", "strength": 0.5, "id": image_id, "image": None}}, (72, 64)),
    ):
        answer = http.post(path, **request)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        order = bed.generator.orders[-1]
        assert (order.task, order.params.prompt, order.params.strength) == (task, "1", 0.5)
        assert order.image is not None
        assert order.image.size == size
        assert order.pictures["image"].image_id == (image_id if size == (72, 64) else None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "image"),
        ({"image": png_base64(), "image_id": "x"}, "image"),
        ({"image_id": "x", "id": "x"}, "id"),
        ({"image": "http://127.0.0.1/x.png"}, "image"),
        ({"image": "data:text/plain;base64,AAAA"}, "image"),
        ({"image": "AAA"}, "image"),
        ({"image": 5}, "image"),
        ({"image": "AAAA"}, "image"),
        ({"image": png_base64(), "width": 3}, "width"),
        ({"prompt": None, "image": png_base64()}, "prompt"),
    ],
)
def test_redrawing_is_refused(http: TestClient, body: dict[str, Any], field: str) -> None:
    answer = http.post("/img2img", json={"prompt": "a"} | body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_pictures_that_cannot_be_had(http: TestClient) -> None:
    missing = http.post("/img2img", json={"prompt": "a", "image_id": "A" * 22})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "image_not_found")
    large = http.post("/img2img", json={"prompt": "a", "image": png_base64((97, 96))})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "image_too_large")
    assert http.post("/img2img", json=[1]).json()["error"]["field"] == "prompt"
    assert http.post("/generate", json=RED | {"image": "x"}).json()["error"]["field"] == "image"


def test_headers_in_the_place_of_fields(http: TestClient, bed: Bed) -> None:
    headers = {"X-SLO-MS": "60000", "X-Priority": "-3"}
    http.post("/generate", json=RED, headers=headers)
    assert bed.last == RED | {"slo_ms": 60000, "priority": -3}
    http.post("/generate", json=RED | {"slo_ms": 9e4, "priority": 1}, headers=headers)
    assert bed.last == RED | {"slo_ms": 9e4, "priority": 1}
    wrong = http.post("/generate", json=RED | {"priority": 1}, headers={"X-Priority": "99"})
    assert wrong.json()["error"]["field"] == "priority"


@pytest.mark.parametrize(
    ("status", "request_", "kind"),
    [
        (400, {"content": b"{"}, "malformed_body"),
        (415, {"content": b"", "headers": {"Content-Type": "text/csv"}}, "unsupported_body"),
        (413, {"json": {"prompt": "x" * (1 << 20)}}, "body_too_large"),
        (422, {"json": [1]}, "invalid_input"),
        (422, {"json": RED, "headers": {"X-Request-Id": "a b"}}, "invalid_input"),
        (429, {"json": {"prompt": "full"}}, "overloaded"),
        (500, {"json": {"prompt": "bug"}}, "internal_error"),
    ],
)
def test_errors(http: TestClient, status: int, request_: Any, kind: str) -> None:
    for path in ("/generate", "/generate/stream"):
        answer = http.post(path, **request_)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (status, kind)
        assert error["request_id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text


def test_a_form_or_json_without_its_type(http: TestClient, bed: Bed) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    http.post("/generate", content=b"prompt=quick&seed=5", headers=form)
    assert bed.last == RED
    http.post("/generate", content=b' {"prompt": "quick", "seed": 6}', headers=form)
    assert bed.last == RED | {"seed": 6}
    http.post("/generate", content=b'{"prompt": "quick", "seed": 7}')
    assert bed.last == RED | {"seed": 7}


# Batches


def test_a_batch(http: TestClient, bed: Bed) -> None:
    body = {"requests": [RED, {"prompt": "full"}, {"width": 3}, 5, RED | {"seed": 6}]}
    answer = http.post("/generate_batch", json=body, headers={"X-Request-Id": "b"})
    results = answer.json()
    assert [each.get("error", {}).get("status") for each in results] == [None, 429, 422, 422, None]
    assert [each["request_id"] for each in (results[0], results[4])] == ["b.0", "b.4"]
    assert [each["error"]["request_id"] for each in results[1:4]] == ["b.1", "b.2", "b.3"]
    assert [each["images"][0]["seed"] for each in (results[0], results[4])] == [5, 6]
    http.post("/generate_batch", json={"requests": [RED]}, headers={"X-Priority": "2"})
    assert bed.last == RED | {"priority": 2}


@pytest.mark.parametrize(
    ("request_", "status", "field", "shown"),
    [
        ({"json": {"requests": []}}, 422, "requests", "0 items"),
        ({"json": {"requests": [0] * (MAX_BATCH_ITEMS + 1)}}, 422, "requests", "257 items"),
        ({"json": {"requests": "a"}}, 422, "requests", "a"),
        ({"json": {}}, 422, "requests", None),
        ({"json": [1]}, 422, "requests", None),
        ({"json": {"requests": [RED]}, "headers": {"X-SLO-MS": "0"}}, 422, "slo_ms", "0"),
        ({"json": {"requests": [RED]}, "headers": {"X-Request-Id": ""}}, 422, "X-Request-Id", ""),
        ({"content": b"{"}, 400, "body", "{"),
    ],
)
def test_batches_that_are_refused(
    http: TestClient, request_: Any, status: int, field: str, shown: Any
) -> None:
    answer = http.post("/generate_batch", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"], error["value"]) == (status, field, shown)


def test_the_largest_batch(http: TestClient) -> None:
    wrong = {"requests": [{"width": 3}] * MAX_BATCH_ITEMS}
    assert len(http.post("/generate_batch", json=wrong).json()) == MAX_BATCH_ITEMS


# Streams


def test_a_stream(http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = Image.radial_gradient("L").convert("RGB")
    draw = bed.generator.draw

    async def with_queue(order: Any, *, on_progress: Any, request_id: str, **more: Any) -> Any:
        on_progress(Progress(request_id, 0, "queued", 0, 4, position=3))
        on_progress(Progress(request_id, 1, "base", 2, 4))
        on_progress(Progress(request_id, 0, "refine", 3, 4, preview=preview))
        return await draw(order, request_id=request_id, **more)

    monkeypatch.setattr(bed.generator, "draw", with_queue)
    answer = http.post("/generate/stream", json=RED, headers={"X-Request-Id": "r"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "r"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    parsed = events(answer.text)
    jpeg = base64.b64decode(parsed[3][1].pop("jpeg"))
    assert jpeg == encode(preview, "jpeg", quality=80)
    first = {"request_id": "r", "index": 0}
    assert parsed[:4] == [
        ("queued", first | {"stage": "queued", "position": 3}),
        ("step", {"request_id": "r", "index": 1, "stage": "base", "step": 2, "steps": 4}),
        ("step", first | {"stage": "refine", "step": 3, "steps": 4}),
        ("preview", first | {"stage": "refine", "step": 3}),
    ]
    assert [name for name, _ in parsed[4:]] == ["done"]
    assert parsed[4][1]["images"][0]["seed"] == 5
    assert parsed[4][1]["images"][0]["b64_json"]


def test_a_stream_that_fails_later(
    http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def draw(order: Any, *, on_progress: Any, **_: Any) -> Any:
        on_progress(Progress("r", 0, "base", 1, 4))
        raise Overloaded("full", 2)

    monkeypatch.setattr(bed.generator, "draw", draw)
    answer = http.post("/generate/stream", json=RED, headers={"X-Request-Id": "r"})
    names, data = zip(*events(answer.text), strict=True)
    assert (answer.status_code, names) == (200, ("step", "error"))
    assert data[1] == error_json(Overloaded("full", 2), "r")


def test_a_stream_that_is_silent(
    http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdxl_bento.protocols.http.progress.KEEP_ALIVE_S", 0.01)
    bed.generator.run_s = 0.4
    for path, body in (
        ("/generate/stream", {"prompt": "a"}),
        ("/v1/images/generations", {"prompt": "a", "stream": True}),
    ):
        text = http.post(path, json=body).text
        assert ": still here\n\n" in text
        assert len(events(text)) >= 1


# Routes that draw nothing


def test_lists(http: TestClient, bed: Bed) -> None:
    [model] = http.get("/models").json()["models"]
    assert model == {
        "name": "fake",
        "tag": "fake:1",
        "default": True,
        "default_width": 64,
        "default_height": 64,
        "size_multiple": 8,
        "has_refiner": True,
        "dtype": "fp32",
        "backend": "fake",
        "device": "cpu",
        "load_seconds": 0.5,
        "warm_up_seconds": 0.1,
    }
    assert http.get("/loras").json() == {
        "loras": [
            {
                "name": "striped",
                "models": ["fake"],
                "size_bytes": 1000,
                "loaded": False,
                "pinned": False,
            }
        ]
    }
    assert http.get("/samplers").json() == {"samplers": list(SAMPLERS)}
    bed.generator.state_reason = "because"
    assert http.get("/stats").json() == {
        "state": "ready",
        "state_reason": "because",
        "running": 0,
        "waiting": 0,
    }


def test_stored_pictures(http: TestClient) -> None:
    drawn = http.post("/generate", json=RED | {"output_format": "webp"})
    image_id = drawn.headers["x-image-id"]
    for path, disposition in (("images", "inline"), ("download", "attachment")):
        for name in (image_id, f"{image_id}.webp"):
            answer = http.get(f"/{path}/{name}")
            assert answer.content == drawn.content
            assert answer.headers["content-type"] == "image/webp"
            assert answer.headers["content-disposition"] == (
                f'{disposition}; filename="{image_id}.webp"'
            )
            assert answer.headers["cache-control"] == "private, max-age=3600, immutable"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert (answer.headers["x-image-id"], answer.headers["x-seed"]) == (image_id, "5")
    answer = http.get(f"/images/{image_id}/metadata")
    described = answer.json()
    assert described["params"]["seed"] == 5
    assert datetime.fromisoformat(described["created"]).utcoffset() is not None
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("images", "download"):
        assert http.get(f"/{path}/{'A' * 22}").status_code == 404


def test_cancelling_nothing(http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = http.post("/cancel/r")
    assert (missing.status_code, missing.json()["error"]["field"]) == (404, "request_id")
    cancelled: list[str] = []
    monkeypatch.setattr(bed.generator, "cancel", cancelled.append)
    assert http.post("/cancel/r").json() == {"request_id": "r", "cancelled": True}
    assert cancelled == ["r"]


def test_pages(http: TestClient, bed: Bed) -> None:
    page = http.get("/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"][:9]) == (200, "text/html")
    assert http.get("/ui/").status_code == 404
    assert http.get("/docs").headers["content-type"][:9] == "text/html"
    assert http.get("/docs.json").json()["openapi"] == "3.1.0"

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"gradio"})

    bed.app.state.page = gradio
    browser = http.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (browser.status_code, browser.headers["location"]) == (307, "ui/")
    assert http.get("/", headers={"Accept": "*/*"}, follow_redirects=False).status_code == 200
    assert http.get("/ui/").text == "gradio"


# The schema


def test_what_bentoml_knows_of_the_bodies() -> None:
    """Its clients read these schemas."""
    fields = set(GenerateParams.model_fields)
    assert set(GenerateBody.model_json_schema()["properties"]) == fields
    redraw = ImageBody.model_json_schema()["properties"]
    assert set(redraw) == fields | {*PICTURE_FIELDS, "id"}
    assert redraw["image"]["anyOf"] == [{"type": "file", "format": "image"}, {"type": "null"}]
    for name in (*PICTURE_FIELDS, "id"):
        assert redraw[name]["default"] is None
        assert redraw[name]["description"]
    batch = BatchBody.model_json_schema()["properties"]["requests"]
    assert (batch["minItems"], batch["maxItems"]) == (1, MAX_BATCH_ITEMS)


def test_the_schema_has_every_field() -> None:
    params = GenerateParams.model_json_schema()
    bodies = schema._image_body(params)["content"]
    for content in bodies.values():
        assert set(content["schema"]["properties"]) == {
            *GenerateParams.model_fields,
            *("image", "image_id", "id"),
        }
        assert content["schema"]["required"] == ["prompt"]
    paths = schema.paths(params)
    assert "404" in paths["/img2img"]["post"]["responses"]
    many = paths["/generate_batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert many["properties"]["requests"]["maxItems"] == MAX_BATCH_ITEMS
    assert json.dumps(schema.components()["NativeAnswer"]["properties"]["params"]).count(
        "GenerateParams"
    )
