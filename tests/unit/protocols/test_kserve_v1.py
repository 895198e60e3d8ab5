"""KServe's V1: instances, predictions, and the route in this process."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from starlette.testclient import TestClient

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.kserve.instances import draw_all, max_instances
from sdxl_bento.protocols.kserve.v1 import schema
from sdxl_bento.protocols.kserve.v1.answers import response_body
from sdxl_bento.protocols.kserve.v1.fields import instances_of, is_single
from sdxl_bento.serving.results import Generation, Timings
from tests.unit.protocols.conftest import Bed

PREDICT = "/v1/models/fake:predict"


def asked(body: object, limit: int = 4) -> list[dict[str, Any]]:
    """What each instance sets, without the model."""
    instances = [instance.params for instance in instances_of(body, "m", limit)]
    assert {params.model for params in instances} == {"m"}
    return [params.model_dump(exclude_unset=True, exclude={"model"}) for params in instances]


def refused(body: object, limit: int = 4) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        instances_of(body, "m", limit)
    return caught.value


PROMPTS = "a list of 1 to 4 prompts or objects with a prompt"
BESIDE = "instances and, for all of them, parameters, slo_ms, priority"
MODEL = "m, as the address says, or nothing"


# Fields


@pytest.mark.parametrize(
    "instance",
    [
        {"prompt": "a", "seed": 5},
        {"prompt": "a", "parameters": {"seed": 5}},
        {"parameters": {"prompt": "a", "seed": 5}},
        {"prompt": "a", "seed": 4, "parameters": {"seed": 5}},  # parameters take precedence
        {"prompt": "a", "seed": 5, "parameters": None},
    ],
)
def test_an_instance(instance: dict[str, Any]) -> None:
    expected = [{"prompt": "a", "seed": 5}]
    assert asked(instance) == expected
    assert asked({"instances": [instance]}) == expected
    assert asked({"inputs": [instance]}) == expected


def test_prompts_alone() -> None:
    assert asked({"instances": ["a", "b"]}) == [{"prompt": "a"}, {"prompt": "b"}]


def test_what_all_instances_share() -> None:
    body = {
        "instances": [
            "a",
            {"prompt": "b", "seed": 2, "slo_ms": 9},
            {"prompt": "c", "parameters": {"seed": 3}},
        ],
        "parameters": {"seed": 1, "width": 64, "priority": 1},
        "slo_ms": 5,
        "priority": 2,
    }
    shared = {"width": 64, "priority": 1}
    assert asked(body) == [
        {"prompt": "a", "seed": 1, "slo_ms": 5, **shared},
        {"prompt": "b", "seed": 2, "slo_ms": 9, **shared},
        {"prompt": "c", "seed": 3, "slo_ms": 5, **shared},
    ]


@pytest.mark.parametrize(
    ("body", "field", "value", "allowed"),
    [
        (5, "body", 5, 'an object such as {"instances": ["a red circle"]}'),
        ({"instances": []}, "instances", "0 items", PROMPTS),
        ({"instances": ["a"] * 5}, "instances", "5 items", PROMPTS),
        ({"inputs": "a"}, "inputs", "a", PROMPTS),
        ({"instances": ["a"], "x": 1}, "x", 1, BESIDE),
        ({"instances": ["a"], "inputs": ["b"]}, "inputs", ["b"], BESIDE),
        (
            {"instances": ["a"], "parameters": 5},
            "parameters",
            5,
            "an object with the fields of a call",
        ),
        ({"instances": ["a", 5]}, "instances.1", 5, 'an object such as {"prompt": "a red circle"}'),
        ({"inputs": [{"prompt": "a", "model": "b"}]}, "inputs.0.model", "b", MODEL),
        ({"prompt": "a", "model": "b"}, "model", "b", MODEL),
        ({"instances": ["a"], "parameters": {"model": "b"}}, "parameters.model", "b", MODEL),
    ],
)
def test_refused(body: Any, field: str, value: Any, allowed: str) -> None:
    error = refused(body)
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_errors_of_validation_say_where() -> None:
    error = refused({"instances": ["a", {"prompt": "b", "width": 3}]})
    assert (error.field, error.value) == ("instances.1.width", 3)
    assert refused({"prompt": "b", "width": 3}).field == "width"
    assert refused({"instances": [{"prompt": "a", "parameters": 5}]}).field == (
        "instances.0.parameters"
    )


def test_the_limit() -> None:
    assert len(asked({"instances": ["a"] * 4})) == 4
    assert refused({"instances": ["a"] * 2}, 1).value == "2 items"


@pytest.mark.parametrize(
    ("body", "single"),
    [
        ({"prompt": "a"}, True),
        ({}, True),
        ({"instances": []}, False),
        ({"inputs": 1}, False),
        ([], False),
    ],
)
def test_one_prompt_without_a_list(body: object, single: bool) -> None:
    assert is_single(body) is single


def test_the_schema() -> None:
    params = GenerateParams.model_json_schema()
    lists = schema._body(params)["anyOf"]
    assert [each["required"] for each in lists] == [["instances"], ["inputs"], []]
    shared = {"parameters", "slo_ms", "priority"}
    assert [set(each["properties"]) - shared for each in lists[:2]] == [{"instances"}, {"inputs"}]
    assert set(lists[2]["properties"]) == {*GenerateParams.model_fields, "parameters"}
    assert lists[0]["properties"]["instances"]["minItems"] == 1
    prediction = schema.components()["Prediction"]["properties"]
    assert prediction["images"]["minItems"] == 2


# Answers


def answer(count: int) -> Answer:
    fields = {"model": "m", "width": 64, "height": 64, "seed": 1, "sampler": "ddim"}
    order = Resolved("generate", ResolvedParams(prompt="a", **fields))  # type: ignore[arg-type]
    pictures = [
        Picture(b"\xff", "webp", f"i{index}", 3 + index, 64, 72, index) for index in range(count)
    ]
    return Answer(Generation("r", order, (), Timings(0, 0, 0, 0, 0, 0)), tuple(pictures))


def test_predictions() -> None:
    images = [
        {"format": "webp", "b64": "/w==", "seed": 3 + index, "image_id": f"i{index}"}
        for index in range(2)
    ]
    one = {"model_name": "m", "prompt": "a", "image": images[0]}
    assert response_body([answer(1), answer(2)]) == {"predictions": [one, one | {"images": images}]}


# Several instances at once


class Drawer:
    """Draws calls by their number: negative ones fail at once."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.cancelled = 0

    async def run(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
            if number < 0:
                raise Overloaded("full", 1)
            await asyncio.sleep(0.001 * number)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return number


async def test_they_run_at_once_and_keep_their_order() -> None:
    drawer: Any = Drawer()
    assert await draw_all(drawer, [3, 1, 2]) == [3, 1, 2]  # type: ignore[comparison-overlap, list-item]
    assert drawer.most == 3


async def test_one_that_fails_cancels_the_others() -> None:
    drawer: Any = Drawer()
    with pytest.raises(Overloaded):
        await draw_all(drawer, [9999, -1, 9999])  # type: ignore[list-item]
    assert (drawer.cancelled, drawer.running) == (2, 0)


def test_the_most_instances(bed: Bed) -> None:
    assert max_instances(bed.api) == bed.settings.max_running + bed.settings.max_queue == 80


# The route


def test_predict(http: TestClient, bed: Bed) -> None:
    body = {"instances": ["quick", {"prompt": "quick", "seed": 9}], "parameters": {"seed": 5}}
    answer = http.post(PREDICT, json=body, headers={"X-Request-Id": "r"})
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("r", "no-store")
    assert [each["image"]["seed"] for each in answer.json()["predictions"]] == [5, 9]
    assert [order.params.model for order in bed.generator.orders] == ["fake", "fake"]
    assert "x-cache" not in answer.headers


def test_ids_of_instances(http: TestClient, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    draw = bed.generator.draw

    async def recording(order: Any, *, request_id: Any, **more: Any) -> Any:
        ids.append(request_id)
        return await draw(order, request_id=request_id, **more)

    monkeypatch.setattr(bed.generator, "draw", recording)
    http.post(PREDICT, json={"instances": ["a", "b"]}, headers={"X-Request-Id": "r"})
    http.post(PREDICT, json={"instances": ["a"]}, headers={"X-Request-Id": "s"})
    assert sorted(ids) == ["r.0", "r.1", "s"]


def test_one_prompt_is_answered_by_its_picture(http: TestClient) -> None:
    answer = http.post(PREDICT, json={"prompt": "quick", "seed": 5})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "5"
    for body, accept in (
        ({"prompt": "quick", "num_images": 2}, "*/*"),
        ({"prompt": "quick"}, "application/json"),
        ({"instances": ["quick"]}, "*/*"),
    ):
        answer = http.post(PREDICT, json=body, headers={"Accept": accept})
        [prediction] = answer.json()["predictions"]
        assert base64.b64decode(prediction["image"]["b64"])[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (422, {"instances": [{"prompt": "a", "width": 3}]}, "instances.0.width: got 3"),
        (404, {"instances": [{"prompt": "a", "loras": [{"name": "x"}]}]}, "no LoRA named 'x'"),
        (429, {"instances": ["quick", "full"]}, "the queue is full"),
        (422, [1], "body: got [1]"),
    ],
)
def test_errors(http: TestClient, status: int, body: Any, error: str) -> None:
    answer = http.post(PREDICT, json=body, headers={"X-Request-Id": "r"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r")
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(error)


def test_a_body_that_cannot_be_read(http: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    assert http.post(PREDICT, content=b"{", headers=headers).status_code == 400
    assert http.post("/v1/models/x:predict", json={"prompt": "a"}).status_code == 404
