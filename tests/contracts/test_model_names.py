"""A model answers to the same names in every protocol: its name, its tag, and `latest`."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.server import Server

NAMES = ("fake", "fake:1", "fake:latest")
CALL = {"prompt": "quick"}


@pytest.fixture(scope="module")
def http(faked: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=faked.url, timeout=30) as client:
        yield client


def answers(http: httpx.Client, name: str) -> dict[str, int]:
    """The status of every way to name a model, by its route."""
    bare, _, version = name.partition(":")
    tensor = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["quick"]}
    with_version = f"/v2/models/{bare}" + (f"/versions/{version}" if version else "")
    override = {"prompt": "quick", "override_settings": {"sd_model_checkpoint": name}}
    return {
        "native": http.post("/generate", json={**CALL, "model": name}).status_code,
        "openai": http.post("/v1/images/generations", json={**CALL, "model": name}).status_code,
        "openai models": http.get(f"/v1/models/{name}").status_code,
        "v1": http.post(f"/v1/models/{name}:predict", json={"instances": ["quick"]}).status_code,
        "v2": http.get(with_version).status_code,
        "v2 ready": http.get(f"{with_version}/ready").status_code,
        "v2 infer": http.post(f"{with_version}/infer", json={"inputs": [tensor]}).status_code,
        "a1111": http.post("/sdapi/v1/txt2img", json=override).status_code,
        "a1111 options": http.post(
            "/sdapi/v1/options", json={"sd_model_checkpoint": name}
        ).status_code,
    }


@pytest.mark.parametrize("name", NAMES)
def test_known_by_each_of_its_names(http: httpx.Client, name: str) -> None:
    statuses = answers(http, name)
    assert set(statuses.values()) == {200}, statuses


@pytest.mark.parametrize("name", ["nope", "fake:2"])
def test_unknown_everywhere(http: httpx.Client, name: str) -> None:
    statuses = answers(http, name)
    assert set(statuses.values()) == {404}, statuses
