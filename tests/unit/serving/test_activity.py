"""What is told of a process's work: states, caches, units."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sdxl_bento.engine.async_engine import EngineState
from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.request import BatchKey, Stage
from sdxl_bento.serving.activity import Activity
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.registry import ModelRegistry
from sdxl_bento.serving.results import UnitDone
from sdxl_bento.serving.verification import Verification
from tests.support.loaded_models import FakePool, loaded


class Engine:
    """An engine in some state, with three pictures at work."""

    def __init__(self, state: EngineState) -> None:
        self.state = state

    def counts(self) -> dict[str, int]:
        return {"waiting": 2, "running": 1}


def activity(state: EngineState, *models: Loaded) -> Activity:
    registry = ModelRegistry(lambda: str(state))
    registry.publish({model.name: model for model in models})
    engine: Any = Engine(state)
    return Activity(engine, registry, Verification())


def completion(stage: Stage, rows: int, seconds: float) -> Completion:
    unit: Any = SimpleNamespace(key=BatchKey("m", stage, 64, 64), rows=rows)
    return Completion(unit, seconds)


@pytest.mark.parametrize("state", EngineState)
def test_pictures_are_counted_while_there_is_an_engine(state: EngineState) -> None:
    runs = state in (EngineState.READY, EngineState.DRAINING)
    counts = {"waiting": 2, "running": 1} if runs else {"waiting": 0, "running": 0}
    assert activity(state).stats() == {"state": str(state), "damaged_files": 0, **counts}


def test_adapters_of_all_models_are_added_up_and_prompts_are_shared() -> None:
    first = loaded("a", pool=FakePool(hits=1, loads=20, failures=300), cache=(7, 8))
    second = loaded("b", pool=FakePool(hits=4, loads=50, failures=600), cache=(7, 8))
    stats = activity(EngineState.READY, first, second).stats()
    assert stats["loras"] == {"hits": 5, "loads": 70, "failures": 900}
    assert stats["prompt_cache"] == {"hits": 7, "misses": 8}


def test_units_are_handed_over_once_in_their_order() -> None:
    busy = activity(EngineState.READY, loaded())
    busy.note(completion(Stage.ENCODE, 2, 0.1))
    busy.note(completion(Stage.BASE, 8, 0.5))
    assert busy.units() == [UnitDone("encode", 2, 0.1), UnitDone("base", 8, 0.5)]
    assert busy.units() == []


def test_warm_up_is_not_counted() -> None:
    busy = activity(EngineState.LOADING)  # no model is published yet
    busy.note(completion(Stage.BASE, 2, 0.1))
    assert busy.units() == []


def test_units_that_nobody_asks_for_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl_bento.serving.activity._MOST_UNITS", 3)
    busy = activity(EngineState.READY, loaded())
    for rows in range(5):
        busy.note(completion(Stage.BASE, rows, 0.1))
    assert [unit.rows for unit in busy.units()] == [2, 3, 4]
