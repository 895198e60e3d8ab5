"""The OpenAI Images protocol through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.support.server import FAKED, Server, faked_environment, serve

RUN_S = 0.4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    env = faked_environment(folder / "home", FAKE_RUN_S=RUN_S, SDXL_MAX_PIXELS=1_000_000)
    with serve(FAKED, folder / "log", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


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
