"""From the signal to the exit: who is told when, and what if it takes too long."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace

import pytest

from sdxl_bento.serving import shutdown
from sdxl_bento.serving.shutdown import Shutdown

INSTALLED: list[Shutdown] = []


class Uvicorn:
    """What uvicorn's server has that matters here."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.server_state = SimpleNamespace(tasks=set())

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.seen.append(number)


class Steps:
    """A drain that lasts until it is told to end, and a close."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.drained = asyncio.Event()
        self.fails = False

    async def drain(self) -> None:
        self.begun.append("drain")
        await self.drained.wait()
        if self.fails:
            raise OSError("the drain has failed")

    async def close(self) -> None:
        self.begun.append("close")


@pytest.fixture
def server() -> Iterator[Uvicorn]:
    """A web server whose handlers are set, as they are when a worker starts."""
    before = {number: signal.getsignal(number) for number in shutdown.SIGNALS}
    made = Uvicorn()
    for number in shutdown.SIGNALS:
        signal.signal(number, made.handle_exit)
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)
    while INSTALLED:  # or they would end the process of the tests, later on
        INSTALLED.pop().disarm()


def installed(steps: Steps, within_s: float = 600) -> Shutdown:
    made = Shutdown(steps.drain, steps.close, within_s)
    INSTALLED.append(made)
    made.on_signal()
    return made


async def until(happened: Callable[[], object]) -> None:
    """Wait for it, and then for what might happen once more."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", shutdown.SIGNALS)
async def test_the_web_server_is_told_when_everything_is_done(
    server: Uvicorn, number: signal.Signals
) -> None:
    steps = Steps()
    installed(steps)
    server.server_state.tasks.add("a call that is being answered")
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: steps.begun)
    assert (steps.begun, server.seen) == (["drain"], [])  # once, however often it is told
    steps.drained.set()
    await asyncio.sleep(0.05)
    assert (steps.begun, server.seen) == (["drain"], []), "a call has no answer yet"
    server.server_state.tasks.clear()
    await until(lambda: server.seen)
    assert (steps.begun, server.seen) == (["drain", "close"], [number])


async def test_an_answer_that_nobody_reads_is_not_waited_for(
    server: Uvicorn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "_ANSWER_S", 0.02)
    steps = Steps()
    installed(steps)
    server.server_state.tasks.add("a client that has stopped reading")
    steps.drained.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: server.seen)


async def test_a_second_interrupt_is_not_kept_waiting(server: Uvicorn) -> None:
    """Ctrl-C reaches the worker from the terminal and, as SIGTERM, from its supervisor: once."""
    steps = Steps()
    installed(steps)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        signal.raise_signal(number)
    await until(lambda: steps.begun)
    assert server.seen == []
    signal.raise_signal(signal.SIGINT)
    assert server.seen == [signal.SIGINT]
    steps.drained.set()
    await until(lambda: len(server.seen) == 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_drain_that_fails_keeps_no_process(server: Uvicorn) -> None:
    steps = Steps()
    steps.fails = True
    made = installed(steps)
    steps.drained.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: server.seen)
    assert made._task is not None
    assert isinstance(made._task.exception(), OSError)


async def test_a_signal_that_was_ignored_stays_so(server: Uvicorn) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    steps = Steps()
    installed(steps)
    steps.drained.set()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: "close" in steps.begun)


async def test_the_process_is_spared_once_it_is_disarmed(
    server: Uvicorn, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    steps = Steps()
    steps.drained.set()
    made = installed(steps, within_s=0.05)
    signal.raise_signal(signal.SIGTERM)
    made.disarm()
    await asyncio.sleep(0.15)
    assert not ended


async def test_what_hangs_is_ended_by_force(
    server: Uvicorn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    steps = Steps()
    installed(steps, within_s=0.02)
    await asyncio.sleep(0.05)
    assert not ended
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: ended)
    assert "did not end within 0.02 s" in caplog.text
    steps.drained.set()
    await until(lambda: server.seen)


def test_outside_the_main_thread_signals_are_left_alone(server: Uvicorn) -> None:
    async def install() -> None:
        installed(Steps())

    thread = threading.Thread(target=asyncio.run, args=(install(),))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit
