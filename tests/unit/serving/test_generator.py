"""The facade: what it says and refuses before, while and after the models are loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.fake import COSTS, FakeClock, FakeExecutor
from sdxl_bento.errors import ConfigurationError, EngineDead, NotReady
from sdxl_bento.serving import loading
from sdxl_bento.serving.generator import Generator
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.results import Progress
from sdxl_bento.serving.verification import Verification
from tests.support.loaded_models import loaded, order


class Loading:
    """Stands in for `loading.load`: waits until it is let go, then has a fake device."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.arguments: dict[str, Any] = {}
        self.profiles_kept = 0

    def __call__(
        self,
        settings: Settings,
        worker_index: int,
        wake: Callable[[], None],
        on_unit: Callable[[Completion], None],
        *,
        warm: bool,
        verification: Verification,
    ) -> tuple[Engine, Mapping[str, Loaded], Callable[[], None]]:
        self.verification = verification
        self.arguments = {"settings": settings, "worker_index": worker_index, "warm": warm}
        assert self.go_on.wait(20)
        if self.error is not None:
            raise self.error
        clock = FakeClock()
        engine = Engine(FakeExecutor(clock, COSTS), clock=clock, on_unit=on_unit)
        return engine, {"tiny": loaded()}, self.keep

    def keep(self) -> None:
        self.profiles_kept += 1


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Loading:
    stand_in = Loading()
    monkeypatch.setattr(loading, "load", stand_in)
    return stand_in


async def until(generator: Generator, state: str) -> None:
    async with asyncio.timeout(20):
        while generator.state != state:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_from_new_to_stopped(load: Loading) -> None:
    load.go_on.clear()
    generator = Generator(Settings())
    assert generator.state == "new"
    with pytest.raises(NotReady, match="new"):
        generator.resolve(order())
    generator.start()
    assert generator.state == "loading"
    for call in (generator.resolve, generator.models.get):
        with pytest.raises(NotReady, match="loading"):
            call(order() if call == generator.resolve else None)  # type: ignore[operator]
    load.go_on.set()
    await until(generator, "ready")
    assert generator.models.name_of(None) == "tiny"
    wanted = generator.resolve(order(num_images=2))
    generation = await generator.draw(wanted)
    assert len(generation.images) == 2
    assert len(generation.request_id) == 16
    await generator.stop()
    assert generator.state == "stopped"
    assert generator.state_reason == ""
    assert load.profiles_kept == 1
    with pytest.raises(NotReady, match="stopped"):
        await generator.draw(wanted)


async def test_the_models_are_loaded_as_it_is_told(load: Loading) -> None:
    settings = Settings(max_steps=7)
    for given, warm in (({}, True), ({"warm": False}, False)):
        generator = Generator(settings, 3, **given)
        generator.start()
        await until(generator, "ready")
        assert load.arguments == {"settings": settings, "worker_index": 3, "warm": warm}
        await generator.stop()


async def test_a_model_that_is_found_damaged_is_drawn_with_no_more(load: Loading) -> None:
    generator = Generator(Settings(verify="background"))
    generator.start()
    await until(generator, "ready")
    assert load.verification.mode == "background"
    wanted = generator.resolve(order())
    load.verification.damaged.append("base/unet/config.json is missing")
    load.verification.reason = "tiny is damaged: base/unet/config.json is missing"
    assert (generator.state, generator.state_reason) == ("damaged", load.verification.reason)
    for refused in (lambda: generator.resolve(order()), lambda: generator.models.ready("tiny")):
        with pytest.raises(NotReady, match="damaged"):
            refused()
    with pytest.raises(NotReady, match="damaged"):
        await generator.draw(wanted)
    assert generator.activity.stats()["damaged_files"] == 1
    await generator.stop()
    assert generator.state == "stopped"


async def test_what_fails_to_load_is_dead_and_says_why(load: Loading) -> None:
    load.error = ConfigurationError("the model is cut short")
    generator = Generator(Settings())
    generator.start()
    await until(generator, "dead")
    assert generator.state_reason == "ConfigurationError: the model is cut short"
    with pytest.raises(EngineDead, match="cut short"):
        generator.resolve(order())
    assert not generator.models
    await generator.stop()
    assert load.profiles_kept == 0


async def test_progress_wants_previews(load: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(Settings())
    generator.start()
    await until(generator, "ready")
    wanted = generator.resolve(order())
    asked: list[bool] = []
    plan = generator.planner.plan

    def noted(order: Any, *, wants_preview: bool = False) -> Any:
        asked.append(wants_preview)
        return plan(order, wants_preview=wants_preview)

    monkeypatch.setattr(generator.planner, "plan", noted)
    await generator.draw(wanted)
    told: list[Progress] = []
    await generator.draw(wanted, request_id="mine", on_progress=told.append)
    assert asked == [False, True]
    assert {each.request_id for each in told} == {"mine"}
    await generator.stop()


async def test_its_parts_are_about_the_same_engine(load: Loading) -> None:
    generator = Generator(Settings())
    generator.start()
    await until(generator, "ready")
    generation = await generator.draw(generator.resolve(order(num_inference_steps=2)), skip=())
    stages = [unit.stage for unit in generator.activity.units()]
    assert stages == ["encode", "base", "base", "decode"]
    assert generator.activity.stats()["state"] == "ready"
    assert generator.provenance(generation.order).model == "tiny:v1"
    await generator.stop()


async def test_pictures_that_are_known_are_left_out(load: Loading) -> None:
    generator = Generator(Settings())
    generator.start()
    await until(generator, "ready")
    wanted = generator.resolve(order(num_images=3))
    generation = await generator.draw(wanted, skip={1})
    assert [image.index for image in generation.images] == [0, 2]
    await generator.stop()
