"""The models that a service needs from the store, and those that a bento brings along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bentoml
import pytest
from bentoml.exceptions import NotFound
from bentoml.models import BentoModel

from sdxl_bento.config import DEFAULT_MODEL, Settings
from sdxl_bento.serving import packing
from sdxl_bento.serving.packing import (
    RequiredModel,
    missing_model,
    require_models,
    with_packed_models,
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The tags in the store."""
    tags: set[str] = set()
    listed = SimpleNamespace(models=SimpleNamespace(list=lambda: [
        SimpleNamespace(tag=tag) for tag in tags
    ]))  # fmt: skip
    monkeypatch.setattr(packing, "bentoml", listed)
    stored = property(lambda model: str(model.tag) if str(model.tag) in tags else None)
    monkeypatch.setattr(RequiredModel, "stored", stored)
    return tags


def test_what_is_missing_and_what_there_is(store: set[str]) -> None:
    said = missing_model("mine:2")
    assert "there is no model mine:2 in BentoML's model store. It is empty." in said
    assert "`python -m export <folder or hub id> --name mine`" in said
    store |= {"b:1", "a:1"}
    said = missing_model(DEFAULT_MODEL)
    assert "It holds a:1, b:1." in said
    assert "`python -m export embedded`," in said
    assert said.endswith("or name another in SDXL_MODEL.")


def test_every_model_of_the_settings_has_to_be_there(store: set[str]) -> None:
    settings = Settings(model="a:1", models="b:2")
    store |= {"a:1"}
    with pytest.raises(NotFound, match="there is no model b:2"):
        require_models(settings)
    store |= {"b:2"}
    require_models(settings)


@pytest.mark.parametrize("method", ["resolve", "to_info"])
def test_a_missing_model_is_told_with_its_command(
    store: set[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked: list[tuple[Any, ...]] = []

    def upstream(self: BentoModel, *args: Any, **kwargs: Any) -> str:
        asked.append((str(self.tag), args, kwargs))
        return "upstream's"

    monkeypatch.setattr(BentoModel, method, upstream)
    call = getattr(RequiredModel("a:1"), method)
    with pytest.raises(NotFound, match="python -m export"):
        call()
    assert not asked
    store |= {"a:1"}
    assert call(1, x=2) == "upstream's"
    assert asked == [("a:1", (1,), {"x": 2})]


def bento(*tags: str) -> bentoml.Bento:
    models = [SimpleNamespace(tag=tag) for tag in tags]
    packed: Any = SimpleNamespace(info=SimpleNamespace(all_models=models))
    return packed  # type: ignore[no-any-return]


def test_a_bento_serves_the_models_that_it_was_built_with() -> None:
    plain = Settings.model_construct(_fields_set=set())
    assert with_packed_models(plain, bento("a:1", "b:2", "c:3")).model_tags == ("a:1", "b:2", "c:3")
    assert with_packed_models(plain, bento("a:1")).model_tags == ("a:1",)
    assert with_packed_models(plain, None) is plain
    assert with_packed_models(plain, bento()) is plain


@pytest.mark.parametrize("named", [{"model": "x:1"}, {"models": "x:1"}])
def test_models_that_the_environment_names_come_first(named: dict[str, Any]) -> None:
    settings = Settings(**named)
    assert with_packed_models(settings, bento("a:1")) is settings
