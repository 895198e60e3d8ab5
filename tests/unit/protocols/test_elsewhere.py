"""What comes from other servers' clients: their addresses, and CloudEvents."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.unit.protocols.conftest import Bed

V1, V2 = "/v1/models/fake:predict", "/v2/models/fake/infer"
PROMPT = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.mark.parametrize(
    ("method", "path", "pointer"),
    [
        ("POST", "/txt2img", "POST /generate draws from a prompt"),
        ("POST", "/predictions", "POST /generate"),
        ("POST", "/v1/predict", "POST /generate"),
        ("POST", "/invocations", ":predict"),
        ("GET", "/ping", "/readyz"),
        ("POST", "/v1/generation/sdxl/text-to-image", "POST /generate"),
        ("POST", "/prompt", "workflows are not supported"),
        ("POST", "/run/predict", "the page is at /ui/"),
        ("POST", "/v1/images/variations", "/v1/images/edits"),
        ("POST", "/v1/chat/completions", "/v1/images/generations"),
        ("POST", "/images/generations", "the base URL has to end in /v1"),
        ("POST", "/sdapi/v1/extra-single-image", "no upscalers"),
        ("POST", "/v2/models/fake/generate", "/infer"),
        ("GET", "/v2/models/fake/stats", "not supported"),
        ("GET", "/openapi.json", "/docs.json"),
        ("POST", "/generat", "the nearest is /generate"),
        ("GET", "/sampler", "the nearest is /samplers"),
        ("POST", "/v1/models/fake:explain", "a model has :predict, and no :explain"),
        ("POST", "/v1/models/fake:classify", "a model has :predict, and no :classify"),
        ("GET", "/nowhere", ""),
        ("GET", f"/{'x' * 5000}", ""),
    ],
)
def test_pointers(http: TestClient, method: str, path: str, pointer: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 404
    assert pointer in answer.text
    assert f"no route {method} {path[:100]}" in answer.text
    assert len(answer.text) < 500
    if not pointer:
        assert ";" not in answer.text


def test_another_method(http: TestClient) -> None:
    answer = http.get("/sdapi/v1/txt2img")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "GET is not allowed here" in answer.json()["detail"]
    assert http.put(V1).status_code == 405


def test_an_alias_names_a_model_in_every_protocol(tmp_path: Path) -> None:
    bed = Bed(tmp_path, model_aliases=(("dall-e-3", "fake"),))
    override = {"override_settings": {"sd_model_checkpoint": "dall-e-3.safetensors [0a1b]"}}
    with TestClient(bed.app) as http:
        for path, body in (
            ("/generate", {"prompt": "a", "model": "dall-e-3"}),
            ("/v1/images/generations", {"prompt": "a", "model": "dall-e-3"}),
            ("/v1/models/dall-e-3:predict", {"instances": ["a"]}),
            ("/v2/models/dall-e-3/infer", {"inputs": [PROMPT], "model_name": "dall-e-3"}),
            ("/sdapi/v1/txt2img", override),
            ("/sdapi/v1/options", {"sd_model_checkpoint": "dall-e-3"}),
        ):
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            assert "dall-e" not in answer.headers.get("x-model", "")
        for path in ("/v1/models/dall-e-3", "/v2/models/dall-e-3/ready"):
            assert http.get(path).json()["name"] == "fake"
        unknown = http.post("/generate", json={"prompt": "a", "model": "dall-e-2"})
        assert unknown.json()["error"]["type"] == "model_not_found"


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "s"}, "ce-"),
        ({"CE-Type": "t"}, "ce-type"),
        ({"Content-Type": "application/cloudevents+json"}, "Content-Type"),
        ({"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}, "Content-Type"),
    ],
)
def test_cloud_events(http: TestClient, headers: dict[str, str], named: str) -> None:
    for path, body in ((V1, {"instances": ["a"]}), (V2, {"inputs": [PROMPT]})):
        answer = http.post(path, json=body, headers=headers)
        assert answer.status_code == 415, path
        assert answer.json()["error"].startswith(named)
        assert http.post(path, json=body, headers={"X-CE": "1"}).status_code == 200
