"""The engine's thread, from its start to its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from sdxl_bento.engine.async_engine import AsyncEngine, EngineState, StepDone
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.executor import Completion
from sdxl_bento.engine.fake import FakeClock, FakeExecutor, expected_result
from sdxl_bento.engine.request import Request, Stage, Unit
from sdxl_bento.errors import EngineDead, NotReady
from tests.simulation.world import MODELS, way

WAIT_S = 5.0


class Gated(FakeExecutor):
    """Lets nothing complete before `gate` is set; dies there if told to."""

    def __init__(self, dies: bool = False) -> None:
        super().__init__(FakeClock())
        self.gate = threading.Event()
        self.launched = threading.Event()
        self.dies = dies

    def launch(self, unit: Unit) -> None:
        super().launch(unit)
        self.launched.set()

    def collect(self, max_in_flight: int) -> Iterator[Completion]:
        if self._queue:
            self.gate.wait(WAIT_S)
            if self.dies:
                raise RuntimeError("the device is gone")
        yield from super().collect(max_in_flight)


def engine_over(executor: FakeExecutor) -> AsyncEngine:
    return AsyncEngine(lambda wake: Engine(executor, clock=executor.clock))


def ask(id_: str, steps: int = 4) -> Request:
    return Request(id_, MODELS[0], 1024, 1024, way(steps))


async def until(done: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.001)):
        if done():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come to that")


async def become(engine: AsyncEngine, state: EngineState) -> None:
    await until(lambda: engine.state is state)


async def begin(engine: AsyncEngine, executor: Gated, request: Request) -> asyncio.Task[object]:
    """Start the engine and a request; its first unit is on the device."""
    engine.start()
    await become(engine, EngineState.READY)
    task = asyncio.create_task(engine.run(request))
    assert await asyncio.to_thread(executor.launched.wait, WAIT_S)
    return task


async def test_states_from_new_to_stopped() -> None:
    loaded = threading.Event()

    def build(wake: Callable[[], None]) -> Engine:
        loaded.wait(WAIT_S)
        clock = FakeClock()
        return Engine(FakeExecutor(clock), clock=clock)

    engine = AsyncEngine(build)
    assert engine.state is EngineState.NEW
    engine.start()
    assert engine.state is EngineState.LOADING
    with pytest.raises(NotReady):
        await engine.run(ask("a"))
    loaded.set()
    await become(engine, EngineState.READY)
    steps: list[StepDone] = []
    request = ask("a", steps=3)
    result = await asyncio.wait_for(engine.run(request, steps.append), WAIT_S)
    assert result == expected_result(request)
    assert [(done.stage, done.step, done.preview) for done in steps] == [
        (Stage.ENCODE, 1, None),
        *[(Stage.BASE, step, None) for step in (1, 2, 3)],
        (Stage.DECODE, 1, None),
    ]
    await engine.stop(1.0)
    assert engine.state is EngineState.STOPPED
    with pytest.raises(NotReady):
        await engine.run(ask("b"))


async def test_a_build_that_raises_is_told() -> None:
    def build(wake: Callable[[], None]) -> Engine:
        raise RuntimeError("no weights")

    engine = AsyncEngine(build)
    engine.start()
    await become(engine, EngineState.DEAD)
    assert "no weights" in engine.reason
    with pytest.raises(EngineDead, match="no weights"):
        await engine.run(ask("a"))


async def test_a_device_that_dies_ends_who_waits() -> None:
    executor = Gated(dies=True)
    engine = engine_over(executor)
    task = await begin(engine, executor, ask("a"))
    executor.gate.set()
    with pytest.raises(EngineDead, match="the device is gone"):
        await asyncio.wait_for(task, WAIT_S)
    assert engine.state is EngineState.DEAD
    with pytest.raises(EngineDead):
        await engine.run(ask("b"))


async def test_cancelling_the_caller_cancels_the_request() -> None:
    executor = Gated()
    engine = engine_over(executor)
    request = ask("a", steps=50)
    task = await begin(engine, executor, request)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert request.cancelling
    executor.gate.set()
    await until(lambda: request.has_ended)
    assert not engine.cancel("a")
    await engine.stop(1.0)


async def test_stop_lets_those_at_work_end() -> None:
    executor = Gated()
    engine = engine_over(executor)
    request = ask("a", steps=20)
    task = await begin(engine, executor, request)
    stop = asyncio.create_task(engine.stop(WAIT_S))
    await become(engine, EngineState.DRAINING)
    with pytest.raises(NotReady):
        await engine.run(ask("b"))
    executor.gate.set()
    await asyncio.wait_for(stop, WAIT_S)
    assert await task == expected_result(request)
    assert engine.state is EngineState.STOPPED


def test_before_there_is_an_engine_nothing_can_be_cancelled_or_waits() -> None:
    engine = AsyncEngine(lambda wake: Engine(FakeExecutor(FakeClock())))
    assert engine.cancel("r") is False
    assert engine.position(ask("r")) == 0
