"""The OpenAI Images protocol through OpenAI's own client, over an engine that draws nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from tests.contracts.conftest import RUN_S, finished, until_idle, until_running
from tests.support.server import Server

RED: dict[str, Any] = {"prompt": "quick", "size": "64x96", "extra_body": {"seed": 5}}
SLOW = RED | {"prompt": "a red circle"}


@pytest.fixture(scope="module")
def client(faked: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{faked.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def png(size: tuple[int, int] = (64, 96)) -> bytes:
    out = io.BytesIO()
    Image.new("1", size).save(out, "PNG")
    return out.getvalue()


def error_of(caught: pytest.ExceptionInfo[Any]) -> dict[str, Any]:
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert isinstance(body, dict)
    return body


# Pictures


def test_one_picture(client: OpenAI) -> None:
    answer = client.images.generate(**RED)
    assert answer.data is not None
    [image] = answer.data
    assert opened(image.b64_json).size == (64, 96)
    assert (answer.size, answer.output_format, answer.background) == ("64x96", "png", "opaque")
    assert abs(answer.created - time.time()) < 60
    assert image.url is None


def test_usage(client: OpenAI) -> None:
    usage = client.images.generate(**RED, n=2).usage
    assert usage is not None
    assert usage.output_tokens == 2 * 8 * 12
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == 2 * 77
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    edited = client.images.edit(image=png(), prompt="quick").usage
    assert edited is not None
    assert edited.input_tokens_details.image_tokens == edited.output_tokens == 8 * 12


def test_several_pictures(client: OpenAI) -> None:
    answer = client.images.generate(**RED, n=3)
    assert answer.data is not None
    colours = [opened(image.b64_json).getpixel((0, 0)) for image in answer.data]
    assert colours == [(5, 9, 9), (6, 9, 9), (7, 9, 9)]


def test_sizes(client: OpenAI) -> None:
    assert client.images.generate(prompt="quick", size="auto").size == "64x64"
    assert client.images.generate(prompt="quick").size == "64x64"
    assert client.images.generate(prompt="quick", size="512x256").size == "512x256"


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_formats(client: OpenAI, name: Any) -> None:
    answer = client.images.generate(**RED, output_format=name, output_compression=0)
    assert answer.output_format == name
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).format == name.upper()


def test_compression_is_a_quality(client: OpenAI) -> None:
    sizes = []
    for asked in (0, 100):
        answer = client.images.generate(
            prompt="quick", output_format="jpeg", output_compression=asked, size="256x256"
        )
        assert answer.data is not None
        sizes.append(len(str(answer.data[0].b64_json)))
    assert sizes[0] < sizes[1]


def test_links(client: OpenAI, faked: Server) -> None:
    answer = client.images.generate(**RED, n=2, response_format="url")
    assert answer.data is not None
    for image in answer.data:
        assert image.b64_json is None
        assert image.url is not None
        assert image.url.startswith(f"{faked.url}/images/")
        found = httpx.get(image.url)
        assert found.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(found.content)).size == (64, 96)


@pytest.mark.parametrize(
    ("headers", "begin"),
    [
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pictures.example"}, "https://pictures.example/"),
        ({"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "a:8443, b"}, "https://a:8443/"),
        ({"X-Forwarded-Host": "evil/path?"}, "http://127.0.0.1:"),
        ({"X-Forwarded-Proto": "javascript"}, "http://127.0.0.1:"),
    ],
)  # fmt: skip
def test_links_behind_a_proxy(client: OpenAI, headers: dict[str, str], begin: str) -> None:
    answer = client.images.generate(**RED, response_format="url", extra_headers=headers)
    assert answer.data is not None
    assert str(answer.data[0].url).startswith(begin)


def test_the_rest_of_our_fields(client: OpenAI) -> None:
    body = {"negative_prompt": "blue", "num_inference_steps": 7, "guidance_scale": 1.0}
    body |= {"seed": 8, "sampler": "ddim", "refiner": True, "slo_ms": 60_000, "priority": 3}
    answer = client.images.generate(prompt="quick", extra_body=body)
    assert answer.data is not None
    assert answer.data[0].seed == 8  # type: ignore[attr-defined]
    image_id = answer.data[0].image_id  # type: ignore[attr-defined]
    stored = httpx.get(f"{str(client.base_url).removesuffix('v1/')}images/{image_id}")
    described = Image.open(io.BytesIO(stored.content)).info["sdxl-bento"]
    assert '"sampler": "ddim"' in described
    assert '"num_inference_steps": 7' in described
    assert answer.usage is not None
    assert answer.usage.input_tokens == 77  # no guidance, so no negative prompt


def test_what_openai_has_and_we_do_without(client: OpenAI) -> None:
    answer = client.images.generate(
        **RED, user="me", quality="high", style="vivid", background="auto", moderation="low"
    )
    assert answer.data


def test_headers(client: OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        **RED, extra_headers={"X-Request-Id": "mine-2", "X-Priority": "4"}
    )
    assert raw.headers["x-request-id"] == "mine-2"
    assert raw.headers["x-seed"] == "5"
    assert "base;dur=" in raw.headers["server-timing"]


async def test_async_client(faked: Server) -> None:
    async with AsyncOpenAI(base_url=f"{faked.url}/v1", api_key="any") as client:
        calls = asyncio.gather(
            *(client.images.generate(prompt="slow", extra_body={"seed": seed}) for seed in range(4))
        )
        await asyncio.to_thread(until_running, faked, 4)  # at once, not one after the other
        answers = await calls
    assert [each.data[0].seed for each in answers] == [0, 1, 2, 3]  # type: ignore[index,attr-defined]


# Edits


def test_edit(client: OpenAI) -> None:
    answer = client.images.edit(image=("red.png", png()), prompt="1984", n=2)
    assert answer.data is not None
    assert [opened(image.b64_json).size for image in answer.data] == [(64, 96)] * 2


def test_a_list_of_one_picture_and_our_fields(client: OpenAI) -> None:
    body: dict[str, Any] = {"strength": 0.6, "seed": 9, "loras": []}
    answer = client.images.edit(
        image=[png()], prompt="quick", extra_body=body, output_format="jpeg"
    )
    assert answer.data is not None
    assert answer.data[0].seed == 9  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError, match="no LoRA named 'nope'"):
        loras = [{"name": "nope", "scale": 0.5}, {"name": "other", "scale": 1}]
        client.images.edit(image=png(), prompt="quick", extra_body={"loras": loras})


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"image": [png(), png()]}, "image"),
        ({"mask": png()}, "mask"),
        ({"image": b"GIF89a"}, "image"),
        ({"extra_body": {"strength": 7}}, "strength"),
    ],
)
def test_edits_that_are_refused(client: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.edit(**{"image": png(), "prompt": "a"} | more)
    assert error_of(caught)["param"] == param


def test_a_picture_with_too_many_pixels(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.edit(image=png((2000, 1000)), prompt="quick")
    assert caught.value.status_code == 413
    assert error_of(caught)["code"] == "image_too_large"


# Errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"n": "two"}, "n"),
        ({"size": "huge"}, "size"),
        ({"size": "65x64"}, "size"),
        ({"size": "99999x64"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101, "output_format": "webp"}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"response_format": "file"}, "response_format"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
        ({"extra_body": {"stops": 9}}, "stops"),
        ({"extra_body": {"frame_count": 2}}, "frame_count"),
        ({"extra_body": {"width": 64}, "size": "64x64"}, "size"),
        ({"extra_body": {"num_images": 2}, "n": 2}, "n"),
        ({"extra_body": {"sampler": "heun"}}, "sampler"),
        ({"extra_body": {"loras": [{"name": "a", "scale": 99}]}}, "loras.0.scale"),
        ({"extra_headers": {"X-SLO-MS": "soon"}}, "slo_ms"),
    ],
)
def test_wrong_parameters(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(**{"prompt": "a"} | fields)
    error = error_of(caught)
    assert (error["param"], error["code"]) == (param, "invalid_input")
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: got ")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "dall-e-3"}, "model_not_found"),
        ({"model": "gpt-image-1"}, "model_not_found"),
        ({"extra_body": {"loras": [{"name": "nope"}]}}, "adapter_not_found"),
    ],
)
def test_unknown_names(client: OpenAI, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="quick", **fields)
    assert error_of(caught)["code"] == code


@pytest.mark.parametrize("body", [b"{", b'{"prompt": NaN}', b"[]"])
def test_malformed_bodies(faked: Server, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    url = f"{faked.url}/v1/images/generations"
    answer = httpx.post(url, content=body, headers=headers)
    assert answer.status_code == (422 if body == b"[]" else 400)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(prompt="x" * 2_000_000)
    assert (caught.value.status_code, error_of(caught)["code"]) == (413, "body_too_large")


def test_overload_says_when_to_try_again(client: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="full")
    assert caught.value.response.headers["retry-after"] == "4"
    error = error_of(caught)
    assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")


def test_a_deadline_that_cannot_be_met(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="cannot be met") as caught:
        client.images.generate(prompt="late")
    assert (caught.value.status_code, error_of(caught)["code"]) == (503, "deadline_infeasible")
    assert caught.value.response.headers["retry-after"] == "2"


def test_a_server_that_is_not_ready(loading: Server) -> None:
    url = f"{loading.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        calls: list[Any] = [
            lambda: client.images.generate(prompt="quick"),
            lambda: client.images.generate(prompt="quick", stream=True),
            lambda: client.images.edit(image=png(), prompt="quick"),
            lambda: client.models.retrieve("fake"),
        ]
        for call in calls:
            with pytest.raises(openai.InternalServerError) as caught:
                call()
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "2"
            assert error_of(caught)["code"] == "not_ready"


def test_a_bug_keeps_its_text_to_itself(client: OpenAI, faked: Server) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="bug")
    assert error_of(caught)["type"] == "server_error"
    assert "secret" not in str(caught.value)
    assert "RuntimeError: secret detail" in faked.output()


def test_other_addresses_and_methods(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.post("/images/variations", cast_to=dict)
    assert error_of(caught)["code"] == "not_found"
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/images/generations", cast_to=dict)
    assert caught.value.status_code == 405
    assert error_of(caught)["code"] == "method_not_allowed"


# Streams


def test_stream(client: OpenAI) -> None:
    events = list(client.images.generate(**RED, stream=True, partial_images=2))
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert [opened(event.b64_json).size for event in partial] == [(8, 8)] * 2
    [last] = [event for event in events if event.type == "image_generation.completed"]
    assert last is events[-1]
    assert opened(last.b64_json).size == (64, 96)
    assert (last.size, last.quality, last.background) == ("64x96", "auto", "opaque")
    assert last.usage.total_tokens == 2 * 77 + 8 * 12


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_partial_pictures_as_asked_for(client: OpenAI, count: int) -> None:
    events = list(client.images.generate(**RED, stream=True, partial_images=count))
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * count + [
        "completed"
    ]


def test_stream_of_an_edit(client: OpenAI) -> None:
    events = client.images.edit(image=png(), prompt="quick", n=2, stream=True, partial_images=1)
    names = [event.type for event in events]
    assert names == ["image_edit.partial_image"] + ["image_edit.completed"] * 2


def test_an_error_before_the_first_event_has_its_status(client: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="full", stream=True)
    with pytest.raises(openai.UnprocessableEntityError):
        client.images.generate(prompt="quick", size="65x64", stream=True)


def test_an_error_after_the_first_event_is_an_event(client: OpenAI, faked: Server) -> None:
    headers = {"X-Request-Id": "stop-stream"}
    asked = SLOW | {"prompt": "a slow circle"}
    events = client.images.generate(**asked, stream=True, partial_images=3, extra_headers=headers)
    assert next(iter(events)).type == "image_generation.partial_image"
    httpx.post(f"{faked.url}/cancel/stop-stream")
    with pytest.raises(openai.APIError, match="cancelled") as caught:
        list(events)
    assert error_of(caught)["code"] == "request_cancelled"


# Calls that end early


def test_a_cancelled_call_is_not_tried_again(faked: Server) -> None:
    async def cancelled() -> openai.ConflictError:
        async with AsyncOpenAI(base_url=f"{faked.url}/v1", api_key="any") as client:
            headers = {"X-Request-Id": "stop-openai"}
            asked = SLOW | {"prompt": "a slow circle"}
            call = asyncio.create_task(client.images.generate(**asked, extra_headers=headers))
            await asyncio.to_thread(until_running, faked, 1)
            await asyncio.to_thread(httpx.post, f"{faked.url}/cancel/stop-openai")
            with pytest.raises(openai.ConflictError) as caught:
                await call
            return caught.value

    until_idle(faked)
    error = asyncio.run(cancelled())
    assert error.code == "request_cancelled"
    assert error.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_call(client: OpenAI, faked: Server, stream: bool) -> None:
    until_idle(faked)
    before = finished(faked, "openai")
    with pytest.raises(openai.APITimeoutError):
        answer: Any = client.images.generate(**SLOW, stream=stream, timeout=RUN_S / 4)
        list(answer)
    until_idle(faked)
    assert finished(faked, "openai") == before


def test_a_stream_that_is_closed_ends_its_call(client: OpenAI, faked: Server) -> None:
    before = finished(faked, "openai")
    with client.images.generate(**SLOW, stream=True, partial_images=3) as events:
        next(iter(events))
    until_idle(faked)
    assert finished(faked, "openai") == before


def test_metrics(client: OpenAI, faked: Server) -> None:
    before = finished(faked, "openai")
    client.images.generate(**RED)
    assert finished(faked, "openai") == before + 1


# Models


def test_models(client: OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "sdxl-bento")
    assert client.models.retrieve("fake") == client.models.retrieve("fake:1")


def test_models_are_kserves_too(client: OpenAI) -> None:
    assert client.get("/models", cast_to=dict)["models"] == ["fake"]
    answer = client.get("/models/fake", cast_to=dict)
    assert (answer["name"], answer["ready"]) == ("fake", True)


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert caught.value.code == "model_not_found"
    assert "available: fake" in caught.value.message
