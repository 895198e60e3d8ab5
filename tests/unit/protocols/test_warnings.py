"""What a picture lacks of what was asked for is said in the answer of every protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sdxl_bento.protocols.native.fields import BatchBody
from tests.unit.protocols.conftest import Bed, events, png_base64

LONG = "a b c d unread é"
REST = 'this is not read: "unread é"'
HEADER = 'prompt: this is not read: "unread \\xe9"'
V1, V2 = "/v1/models/fake:predict", "/v2/models/fake/infer"
OPENAI, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"


def about(field: str) -> dict[str, str]:
    return {"type": "prompt_truncated", "field": field, "message": f"{field}: {REST}"}


def inputs(*prompts: str, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "prompt", "shape": [len(prompts)], "datatype": "BYTES", "data": prompts}
    return {"inputs": [tensor], "parameters": parameters}


def test_native(http: TestClient) -> None:
    picture = http.post("/generate", json={"prompt": LONG})
    assert picture.headers["x-warning"] == HEADER
    as_json = {"Accept": "application/json"}
    both = {"prompt": LONG, "negative_prompt": LONG}
    answer = http.post("/generate", json=both, headers=as_json)
    assert answer.json()["warnings"] == [about("prompt"), about("negative_prompt")]
    assert answer.headers["x-warning"].count("; ") == 1
    answer = http.post("/generate", json={"prompt": "a"}, headers=as_json)
    assert "warnings" not in answer.json()
    assert "x-warning" not in answer.headers
    for path in ("/img2img", "/refine"):
        redrawn = http.post(path, json={"prompt": LONG, "image": png_base64()})
        assert redrawn.headers["x-warning"] == HEADER


def test_native_streams_and_batches(http: TestClient) -> None:
    name, done = events(http.post("/generate/stream", json={"prompt": LONG}).text)[-1]
    assert (name, done["warnings"]) == ("done", [about("prompt")])
    batch = http.post("/generate_batch", json={"requests": [{"prompt": "a"}, {"prompt": LONG}]})
    assert [each.get("warnings") for each in batch.json()] == [None, [about("prompt")]]


def test_openai(http: TestClient) -> None:
    answer = http.post(OPENAI, json={"prompt": LONG})
    assert answer.json()["warnings"] == [about("prompt")]
    assert answer.headers["x-warning"] == HEADER
    [*_, (name, done)] = events(http.post(OPENAI, json={"prompt": LONG, "stream": True}).text)
    assert (name, done["warnings"]) == ("image_generation.completed", [about("prompt")])
    assert "warnings" not in http.post(OPENAI, json={"prompt": "a"}).json()


def test_kserve(http: TestClient) -> None:
    answer = http.post(V1, json={"instances": ["a", LONG, {"parameters": {"prompt": LONG}}]})
    warned = [each.get("warnings") for each in answer.json()["predictions"]]
    assert warned == [None, [about("instances.1.prompt")], [about("instances.2.parameters.prompt")]]
    assert answer.headers["x-warning"].startswith("instances.1.prompt: this is not read")
    assert http.post(V1, json={"prompt": LONG}).headers["x-warning"] == HEADER
    answer = http.post(V2, json=inputs("a", LONG))
    assert answer.json()["parameters"] == {"warnings": f"prompt (row 1): {REST}"}
    assert answer.headers["x-warning"].startswith("prompt (row 1): ")
    assert "parameters" not in http.post(V2, json=inputs("a")).json()


def test_automatic1111(http: TestClient) -> None:
    answer = http.post(A1111, json={"prompt": LONG})
    assert json.loads(answer.json()["info"])["warnings"] == [about("prompt")]
    assert answer.headers["x-warning"] == HEADER
    assert "warnings" not in json.loads(http.post(A1111, json={}).json()["info"])


# A server that warns of unknown fields


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(Bed(tmp_path, unknown_fields="warn").app) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {"prompt": "a", "sed": 5}, "sed"),
        ("/generate", {"prompt": "a", "loras": [{"name": "x", "wieght": 1}]}, "loras.0.wieght"),
        ("/img2img", {"prompt": "a", "image": png_base64(), "sed": 5}, "sed"),
        (OPENAI, {"prompt": "a", "sed": 5}, "sed"),
        (V1, {"instances": ["a"], "sed": 5}, "sed"),
        (V1, {"instances": [{"prompt": "a", "parameters": {"sed": 5}}]},
         "instances.0.parameters.sed"),
        (V2, inputs("a", sed=5), "sed"),
        (V2, inputs("a") | {"paramaters": {}}, "paramaters"),
        (V2, {"inputs": [*inputs("a")["inputs"], inputs("b")["inputs"][0] | {"name": "sed"}]},
         "inputs"),
        (V2, inputs("a") | {"outputs": [{"name": "seed", "paramters": {}}]}, "outputs.0.paramters"),
        (A1111, {"sed": 5}, "sed"),
        (A1111, {"override_settings": {"sd_cae": "x"}}, "override_settings.sd_cae"),
    ],
)  # fmt: skip
def test_unknown_fields_may_be_warned_of(
    lenient: TestClient, path: str, body: Any, field: str
) -> None:
    answer = lenient.post(path, json=body)
    if "loras" in body:  # the adapter itself does not exist
        assert answer.status_code == 404
        return
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-warning"].startswith(f"{field}: there is no such field")


def test_unknown_fields_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path, unknown_fields="warn")
    monkeypatch.setattr(BatchBody, "rules", bed.api.rules)
    with TestClient(bed.app) as client:
        body = {"requests": [{"prompt": "a", "sed": 1}, {"prompt": "b"}], "slo": 1}
        answer = client.post("/generate_batch", json=body)
    assert [[each["field"] for each in item["warnings"]] for item in answer.json()] == [
        ["slo", "sed"],
        ["slo"],
    ]


def test_not_all_unknown_fields_are_told(lenient: TestClient) -> None:
    body = {"prompt": "a"} | {f"x{index}": 1 for index in range(100)} | {"y" * 200: 1}
    answer = lenient.post("/generate", json=body, headers={"Accept": "application/json"})
    assert len(answer.json()["warnings"]) == 8


def test_what_asks_for_too_much_is_refused_all_the_same(lenient: TestClient) -> None:
    assert lenient.post(A1111, json={"enable_hr": True}).status_code == 422
    assert lenient.post("/generate", json={"prompt": "a", "width": 5}).status_code == 422
    assert lenient.post(OPENAI, json={"prompt": "a", "mask": "x"}).status_code == 422
