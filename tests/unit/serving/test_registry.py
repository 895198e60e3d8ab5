"""A model is looked up by name in one place, and answers to all its names."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sdxl_bento.errors import ConfigurationError, ModelNotFound, NotReady
from sdxl_bento.manifest import SizeLimits
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.registry import ModelRegistry


def loaded(name: str, asked: str, tag: str) -> Loaded:
    served: Any = SimpleNamespace(model=SimpleNamespace(tag=tag))
    return Loaded(name, asked, SimpleNamespace(), served, None, 1.0)  # type: ignore[arg-type]


def registry(*models: Loaded, state: str = "ready") -> ModelRegistry:
    models_of = ModelRegistry(lambda: state)
    models_of.publish({model.name: model for model in models})
    return models_of


@pytest.mark.parametrize(
    ("asked", "names", "others"),
    [
        ("sdxl:latest", ["sdxl", "sdxl:latest", "sdxl:v7"], ["sdxl:v6", "SDXL", "", "latest"]),
        ("sdxl", ["sdxl", "sdxl:latest", "sdxl:v7"], ["sdxl:"]),
        ("sdxl:v7", ["sdxl", "sdxl:v7"], ["sdxl:latest"]),  # there may be a later one
    ],
)
def test_a_model_answers_to_its_names(asked: str, names: list[str], others: list[str]) -> None:
    model = loaded("sdxl", asked, "sdxl:v7")
    models = registry(loaded("first", "first:1", "first:1"), model)
    for name in names:
        assert models.find(name) is models.get(name) is model
        assert models.name_of(name) == "sdxl"
    for name in others:
        assert models.find(name) is models.name_of(name) is None
        with pytest.raises(ModelNotFound, match="first, sdxl"):
            models.get(name)


def test_aliases() -> None:
    model = loaded("sdxl", "sdxl:latest", "sdxl:v7")
    other = loaded("turbo", "turbo", "turbo:v1")
    aliases = [("dall-e-3", "sdxl"), ("dall-e-2", "turbo:v1")]
    models = ModelRegistry(lambda: "ready", aliases)
    models.publish({"turbo": other, "sdxl": model})
    assert models.find("dall-e-3") is models.get("dall-e-3") is models.find("sdxl") is model
    assert models.name_of("dall-e-2") == "turbo"  # so metrics have the real name
    assert models.find("dall-e") is None
    for wrong, reason in (
        ([("a", "nope")], "a=nope, but there is no model nope; there are turbo, sdxl"),
        ([("turbo", "sdxl")], "turbo=sdxl, but turbo is the name of a model"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            ModelRegistry(lambda: "ready", wrong).publish({"turbo": other, "sdxl": model})


def test_the_sides_that_any_model_draws() -> None:
    assert registry().sides() is None
    models = {}
    for name, low, high in (("a", 64, 256), ("b", 32, 128)):
        limits = SizeLimits(multiple=32, min=low, max=high)
        facts: Any = SimpleNamespace(manifest=SimpleNamespace(size_limits=limits))
        models[name] = replace(loaded(name, name, f"{name}:1"), facts=facts)
    assert registry(*models.values()).sides() == (32, 256)


def test_whoever_names_no_model_gets_the_first() -> None:
    first, second = loaded("a", "a:1", "a:1"), loaded("b", "b:1", "b:1")
    models = registry(first, second)
    assert models.get() is models.find(None) is first
    assert models.name_of(None) == "a"
    assert models.loaded() == [first, second]


@pytest.mark.parametrize("wrong", [3, ["a"], {"a": 1}, True, 1.5])
def test_a_name_may_be_anything(wrong: object) -> None:
    assert registry(loaded("a", "a:1", "a:1")).name_of(wrong) is None


@pytest.mark.parametrize("state", ["new", "loading", "dead"])
def test_before_a_model_is_there(state: str) -> None:
    models = registry(state=state)
    assert not models
    assert models.find(None) is None
    for look_up in (models.get, models.ready):
        with pytest.raises(NotReady, match=state):
            look_up("a")


def test_a_model_is_ready_only_while_the_engine_is() -> None:
    with pytest.raises(NotReady, match="draining"):
        registry(loaded("a", "a:1", "a:1"), state="draining").ready("a")
