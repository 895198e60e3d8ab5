"""OpenAI's protocol: fields, answers, events, and the routes in this process."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput
from sdxl_bento.order import PICTURES_OF, InputImage, Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.bodies import PICTURE_FIELDS
from sdxl_bento.protocols.openai import schema
from sdxl_bento.protocols.openai.answers import response_body, usage
from sdxl_bento.protocols.openai.fields import (
    IGNORED,
    OWN,
    RENAMED,
    AnswerOptions,
    to_native,
)
from sdxl_bento.protocols.openai.stream import PartialImages
from sdxl_bento.serving.results import Generation, Progress, Timings
from tests.unit.protocols.conftest import Bed, events, png

GENERATE = "/v1/images/generations"
EDIT = "/v1/images/edits"


def native(**body: Any) -> dict[str, Any]:
    fields, _ = to_native(body, "generate")
    assert isinstance(fields, dict)
    return fields


def options(**body: Any) -> AnswerOptions:
    return to_native(body, "generate")[1]


def refused(body: Any, task: Any = "generate") -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        to_native(body, task)
    return caught.value


# Fields


def test_fields() -> None:
    assert native(prompt="a", n=2, size="64x128", model="m", seed=None) == {
        "prompt": "a",
        "num_images": 2,
        "width": 64,
        "height": 128,
        "model": "m",
    }
    assert native(prompt="a", size="auto") == {"prompt": "a"}
    assert native(prompt="a", user="me", quality="hd", stream=True) == {"prompt": "a"}


def test_a_body_that_is_no_object_is_left_to_validation() -> None:
    assert to_native([1], "generate") == ([1], AnswerOptions())


@pytest.mark.parametrize(
    "size", ["0x64", "064x64", "64x0", "64", "64x", "x64", "64X64", "64x64 ", "100000x64", 64, [64]]
)
def test_sizes_that_are_none(size: Any) -> None:
    error = refused({"size": size})
    assert (error.field, error.value) == ("size", size)
    assert error.allowed == "auto, or width and height in pixels, as in 1024x768"


def test_the_largest_size_in_five_digits() -> None:
    assert native(size="99999x10000") == {"width": 99999, "height": 10000}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 1, "num_images": 1}, "n"),
        ({"size": "64x64", "width": 64}, "size"),
        ({"size": "64x64", "height": 64}, "size"),
        ({"output_compression": 100, "output_quality": 90}, "output_compression"),
    ],
)
def test_two_names_of_one_field(body: dict[str, Any], field: str) -> None:
    error = refused(body)
    assert (error.field, error.value) == (field, body[field])
    assert error.allowed.startswith(f"one of {field} and ")
    assert error.allowed.endswith(", not both")


@pytest.mark.parametrize(
    ("body", "quality"),
    [
        ({"output_compression": 100}, 100),
        ({"output_compression": 100, "output_format": "png"}, 100),
        ({"output_compression": 0, "output_format": "webp"}, 1),
        ({"output_compression": 1, "output_format": "jpeg"}, 1),
        ({"output_compression": 55, "output_format": "jpeg"}, 55),
        ({"output_compression": "0", "output_format": "jpeg"}, "0"),
        ({"output_quality": 0, "output_format": "jpeg"}, 0),  # validation refuses it
        ({"output_quality": 50}, 50),
    ],
)
def test_compression(body: dict[str, Any], quality: Any) -> None:
    assert native(**body)["output_quality"] == quality


@pytest.mark.parametrize("value", [101, -1])
def test_the_range_of_compression_is_openais(value: int) -> None:
    error = refused({"output_compression": value, "output_format": "jpeg"})
    assert (error.field, error.value) == ("output_compression", value)
    assert error.allowed == "an integer from 0 to 100"


def test_false_is_no_compression() -> None:
    fields = native(output_compression=False, output_format="webp")
    assert fields["output_quality"] is False  # not 1: validation refuses it


@pytest.mark.parametrize("body", [{}, {"output_format": "png"}])
def test_png_is_not_compressed(body: dict[str, Any]) -> None:
    error = refused(body | {"output_compression": 99})
    assert (error.field, error.value) == ("output_compression", 99)
    assert error.allowed == "100 for png, which loses nothing"


def test_unknown_parameters() -> None:
    error = refused({"prompt": "a", "stps": 5})
    assert (error.field, error.value) == ("stps", 5)
    known = error.allowed.removeprefix("steps (the nearest), or one of the parameters ").split(", ")
    assert known == sorted({*OWN, *GenerateParams.model_fields})
    assert refused({"image": "x"}).field == "image"
    assert refused({"image_id": "x"}).field == "image_id"
    edit = refused({"xyz": 5}, "img2img").allowed.removeprefix("one of the parameters ")
    assert set(edit.split(", ")) == {*known, *PICTURE_FIELDS}


def test_a_mask_is_refused_in_its_own_words() -> None:
    error = refused({"mask": b"x"}, "img2img")
    assert (error.field, error.value) == ("mask", "a picture")
    assert error.allowed.startswith("no mask")
    assert to_native({"mask": None}, "img2img")[0] == {}


def test_one_picture_to_edit() -> None:
    for image in ("a", ["a"]):
        assert to_native({"image": image}, "img2img")[0] == {"image": "a"}
    error = refused({"image": ["a", "b"]}, "img2img")
    assert (error.field, error.value, error.allowed) == ("image", "2 pictures", "one picture")
    assert refused({"image": []}, "img2img").value == "0 pictures"


def test_options() -> None:
    assert options() == AnswerOptions()
    assert options(stream=True, partial_images=3) == AnswerOptions(True, 3)
    assert options(response_format="url") == AnswerOptions(as_url=True)
    assert options(response_format="b64_json", stream=True) == AnswerOptions(True, 0)


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({"stream": 1}, "stream", "true or false"),
        ({"partial_images": 4}, "partial_images", "an integer from 0 to 3"),
        ({"partial_images": -1}, "partial_images", "an integer from 0 to 3"),
        ({"partial_images": True}, "partial_images", "an integer from 0 to 3"),
        ({"partial_images": "1"}, "partial_images", "an integer from 0 to 3"),
        ({"response_format": "file"}, "response_format", "b64_json or url"),
        ({"response_format": "url", "stream": True}, "response_format", "b64_json in a stream"),
    ],
)
def test_wrong_options(body: dict[str, Any], field: str, allowed: str) -> None:
    error = refused(body)
    assert (error.field, error.value, error.allowed) == (field, body[field], allowed)


def test_the_schema_has_every_field() -> None:
    params = GenerateParams.model_json_schema()
    fields = schema._fields(params)
    assert set(fields) == ({*OWN, *IGNORED, *GenerateParams.model_fields}) - {*RENAMED.values()}
    assert fields["prompt"] == params["properties"]["prompt"]
    assert fields["n"]["anyOf"][0]["maximum"] == 16
    for name, high in (("output_compression", 100), ("partial_images", 3)):
        number = {"type": "integer", "minimum": 0, "maximum": high}
        assert fields[name]["anyOf"] == [number, {"type": "null"}]
    assert {"type": "null"} in fields["output_compression"]["anyOf"]
    optional = [name for name in fields if name != "prompt" and name not in IGNORED]
    assert all({"type": "null"} in fields[name]["anyOf"] for name in optional)
    assert fields["num_inference_steps"]["default"] == 25


# Answers


def resolved(task: Any = "generate", **changes: Any) -> Resolved:
    fields = {"prompt": "a", "model": "m", "width": 64, "height": 64, "seed": 1, "sampler": "ddim"}
    source = InputImage(Image.new("RGB", (64, 64)), "0")
    pictures = dict.fromkeys(PICTURES_OF[task], source)
    return Resolved(task, ResolvedParams(**(fields | changes)), pictures)


def picture(width: int = 64, height: int = 72, **changes: Any) -> Picture:
    values = {"data": b"\xff", "output_format": "jpeg", "image_id": "id", "seed": 3}
    return Picture(**{**values, "width": width, "height": height, **changes})


@pytest.mark.parametrize(
    ("order", "text", "image"),
    [
        (resolved(guidance_scale=5), 154, 0),
        (resolved(guidance_scale=1), 77, 0),
        (resolved("img2img"), 154, 72),
        (resolved("refine"), 154, 72),
    ],
)
def test_usage(order: Resolved, text: int, image: int) -> None:
    assert usage(order, [picture(64, 72), picture(65, 71)]) == {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": 72 + 81,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 72 + 81},
        "total_tokens": text + image + 72 + 81,
    }


def test_body() -> None:
    generation = Generation("r", resolved(), (), Timings(0, 0, 0, 0, 0, 0))
    answer = Answer(generation, (picture(), picture(image_id=None, seed=4)))
    body = response_body(answer, None)
    assert abs(body.pop("created") - time.time()) < 5  # type: ignore[misc]
    assert body == {
        "background": "opaque",
        "output_format": "jpeg",
        "size": "64x72",
        "data": [
            {"b64_json": "/w==", "seed": 3, "image_id": "id"},
            {"b64_json": "/w==", "seed": 4, "image_id": None},
        ],
        "usage": usage(answer.order, answer.pictures),
    }
    assert response_body(answer, "http://x/images")["data"] == [
        {"url": "http://x/images/id.jpeg", "seed": 3, "image_id": "id"},
        {"b64_json": "/w==", "seed": 4, "image_id": None},  # it could not be stored
    ]


# Partial images


def sent(count: int, steps: int, with_preview: Any = lambda step: True) -> list[int]:
    partial = PartialImages(count)
    preview = Image.new("RGB", (8, 8))
    indices = []
    for step in range(1, steps + 1):
        shown = preview if with_preview(step) else None
        index = partial.index_of(Progress("r", 0, "base", step, steps, preview=shown))
        if index is not None:
            assert index == len(indices)
            indices.append(step)
    return indices


def test_previews_are_spread_over_the_steps() -> None:
    assert sent(0, 20) == []
    assert sent(1, 20) == [10]
    assert sent(3, 20) == [5, 10, 15]
    assert sent(3, 2) == [1, 2]
    assert sent(2, 20, lambda step: step % 8 == 0) == [8, 16]


def test_each_picture_has_its_own_previews() -> None:
    partial = PartialImages(1)
    preview = Image.new("RGB", (8, 8))
    steps = [Progress("r", index, "base", 1, 2, preview=preview) for index in (0, 1, 1)]
    assert [partial.index_of(step) for step in steps] == [0, 0, None]


# Routes


def test_generate(http: TestClient, bed: Bed) -> None:
    answer = http.post(GENERATE, json={"prompt": "quick", "n": 2, "size": "64x72", "seed": 5})
    assert answer.status_code == 200
    assert answer.headers["x-seed"] == "5, 6"
    assert [each["seed"] for each in answer.json()["data"]] == [5, 6]
    assert bed.last == {"prompt": "quick", "num_images": 2, "width": 64, "height": 72, "seed": 5}
    assert bed.generator.orders[-1].task == "generate"


@pytest.mark.parametrize("compression", [0, 100])
def test_the_least_and_the_greatest_compression(http: TestClient, compression: int) -> None:
    body = {"prompt": "quick", "output_format": "webp", "output_compression": compression}
    assert http.post(GENERATE, json=body | {"partial_images": 3}).status_code == 200


def test_edit(http: TestClient, bed: Bed) -> None:
    answer = http.post(EDIT, data={"prompt": "1984"}, files={"image": png()})
    assert (answer.status_code, answer.json()["size"]) == (200, "64x72")
    order = bed.generator.orders[-1]
    assert (order.task, order.params.prompt) == ("img2img", "1984")
    assert order.image is not None
    assert order.image.size == (64, 72)


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({}, "http://testserver"),
        ({"X-Forwarded-Proto": "HTTPS, http"}, "https://testserver"),
        ({"X-Forwarded-Proto": "ftp"}, "http://testserver"),
        ({"X-Forwarded-Host": "a:8443, b"}, "http://a:8443"),
        ({"X-Forwarded-Host": "a/b"}, "http://testserver"),
        ({"X-Forwarded-Host": "a" * 256}, "http://testserver"),
        ({"X-Forwarded-Host": "a" * 255}, f"http://{'a' * 255}"),
    ],
)
def test_links(http: TestClient, headers: dict[str, str], address: str) -> None:
    body = {"prompt": "quick", "response_format": "url"}
    [image] = http.post(GENERATE, json=body, headers=headers).json()["data"]
    assert image["url"] == f"{address}/images/{image['image_id']}.png"
    assert "b64_json" not in image


def error(http: TestClient, status: int, path: str = GENERATE, **request: Any) -> dict[str, Any]:
    answer = http.post(path, **request)
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return dict(body)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 17}, "n"),
        ({"num_images": 17}, "num_images"),
        ({"size": "65x64"}, "size"),
        ({"size": "64x63"}, "size"),
        ({"width": 65}, "width"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"output_quality": 101, "output_format": "jpeg"}, "output_quality"),
        ({"size": "64x64", "stream": True, "n": 99}, "n"),
        ({"size": "65x64", "stream": True}, "size"),
        ({"stream": "no"}, "stream"),
        ({}, "prompt"),
    ],
)
def test_errors_name_the_callers_parameter(
    http: TestClient, body: dict[str, Any], param: str
) -> None:
    prompt = {"prompt": "quick"} if body else {}
    wrong = error(http, 422, json=prompt | body)
    assert (wrong["param"], wrong["code"]) == (param, "invalid_input")
    assert wrong["message"].startswith(f"{param}: got ")
    assert wrong["type"] == "invalid_request_error"


def test_a_body_that_cannot_be_read(http: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    assert error(http, 400, content=b"{", headers=headers)["code"] == "malformed_body"
    assert error(http, 422, json=[1])["param"] == "body"
    assert error(http, 413, json={"prompt": "x" * (1 << 20)})["code"] == "body_too_large"
    assert error(http, 422, EDIT, json={"prompt": "a"})["param"] == "image"
    large = {"prompt": "a", "image": "A" * (2 << 20)}  # an edit may be larger
    assert error(http, 422, EDIT, json=large)["code"] == "invalid_input"


def test_whose_fault_it_is(http: TestClient) -> None:
    assert error(http, 429, json={"prompt": "full"})["type"] == "rate_limit_error"
    assert error(http, 500, json={"prompt": "bug"})["code"] == "internal_error"
    assert error(http, 503, json={"prompt": "late"})["type"] == "server_error"
    assert error(http, 404, json={"prompt": "a", "model": "x"})["code"] == "model_not_found"


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_cancelled_call_is_not_repeated(
    http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    from sdxl_bento.errors import RequestCancelled

    def cancelled(order: Any) -> Any:
        raise RequestCancelled("the request was cancelled")

    monkeypatch.setattr(bed.generator, "resolve", cancelled)
    answer = http.post(GENERATE, json={"prompt": "a", **more})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert "x-should-retry" not in http.post(GENERATE, json={"prompt": 5}).headers


def test_models(http: TestClient) -> None:
    body = http.get("/v1/models").json()
    [model] = body["data"]
    assert abs(model.pop("created") - time.time()) < 3600
    entry = {"id": "fake", "object": "model", "owned_by": "sdxl-bento"}
    assert body == {"object": "list", "data": [entry], "models": ["fake"]}
    one = http.get("/v1/models/fake:1").json()
    del one["created"]
    assert one == entry | {"name": "fake", "ready": True}
    assert http.get("/v1/models/nope").status_code == 404


# Streams


def test_a_stream(http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PREVIEWS", "1")
    body = {"prompt": "quick", "seed": 5, "stream": True, "partial_images": 2, "n": 2}
    answer = http.post(
        GENERATE, json=body | {"output_format": "jpeg"}, headers={"X-Request-Id": "s1"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "s1"
    names, data = zip(*events(answer.text), strict=True)
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert names == (partial, partial, completed, completed)
    assert [each["partial_image_index"] for each in data[:2]] == [0, 1]
    common = {"output_format": "jpeg", "quality": "auto", "background": "opaque"}
    for name, each in zip(names, data, strict=True):
        assert each.items() >= {"type": name, **common}.items()
        assert abs(each["created_at"] - time.time()) < 60
        image = Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))
        assert image.format == "JPEG"
        assert each["size"] == f"{image.width}x{image.height}"
    assert [(each["index"], each["seed"]) for each in data[2:]] == [(0, 5), (1, 6)]
    assert data[0]["index"] == 0
    assert data[2]["usage"] == {
        "input_tokens": 154,
        "input_tokens_details": {"text_tokens": 154, "image_tokens": 0},
        "output_tokens": 64,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 64},
        "total_tokens": 218,
    }
    assert all(len(each["image_id"]) == 28 for each in data[2:])


def test_a_stream_of_an_edit(http: TestClient) -> None:
    answer = http.post(EDIT, data={"prompt": "a", "stream": "true"}, files={"image": png()})
    assert [name for name, _ in events(answer.text)] == ["image_edit.completed"]


def test_a_stream_that_fails_before_it_begins(http: TestClient) -> None:
    assert error(http, 429, json={"prompt": "full", "stream": True})["code"] == "overloaded"


def test_a_stream_that_fails_later(
    http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def draw(order: Any, *, on_progress: Any, **_: Any) -> Any:
        on_progress(Progress("r", 0, "base", 1, 4))
        raise InvalidInput("width x height", 9, "fewer pixels")

    monkeypatch.setattr(bed.generator, "draw", draw)
    body = {"prompt": "a", "stream": True, "size": "64x64", "n": 1}
    answer = http.post(GENERATE, json=body)
    assert answer.status_code == 200
    assert events(answer.text) == [
        (
            "error",
            {
                "error": {
                    "message": "size: got '64x64', allowed: fewer pixels",
                    "type": "invalid_request_error",
                    "param": "size",
                    "code": "invalid_input",
                }
            },
        )
    ]
