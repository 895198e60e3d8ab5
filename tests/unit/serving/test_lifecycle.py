"""The start and the end of a worker process: what it prints, reports, and does on a signal."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sdxl_bento.errors import SDXLError
from sdxl_bento.serving import lifecycle
from sdxl_bento.serving.gpu import Usage
from sdxl_bento.serving.lifecycle import announce, report_load, welcome
from sdxl_bento.serving.results import ModelSummary, UnitDone

URL = "http://127.0.0.1:3000"
MODEL = ModelSummary("m", "m:1", True, 64, 64, 8, True, "fp32", "eager", "cuda:1", 1.5, 0.5)


class FakeGenerator:
    """A generator that goes through some states, one each time that it is asked."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.state_reason = "the weights are cut short"
        self.activity = self.models = self
        self.asked = 0

    @property
    def state(self) -> str:
        self.asked += 1
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def stats(self) -> dict[str, object]:
        return {"running": self.asked}

    def units(self) -> list[UnitDone]:
        return [UnitDone("base", 2, 0.1)]

    def summaries(self) -> list[ModelSummary]:
        return [MODEL]


async def announced(generator: Any, url: str | None = URL) -> None:
    async with asyncio.timeout(10):
        await announce(generator, url)


async def test_the_address_is_printed_once_it_is_ready(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await announced(FakeGenerator("new", "loading", "loading", "ready"))
    assert capsys.readouterr().out == welcome(URL)
    await announced(FakeGenerator("ready"), None)  # it is another worker's to say
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("state", ["draining", "stopped"])
async def test_a_server_that_ends_before_it_was_ready_prints_nothing(
    state: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await announced(FakeGenerator("loading", state))
    assert capsys.readouterr().out == ""
    assert not caplog.records


async def test_why_it_could_not_start(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await announced(FakeGenerator("loading", "dead"))
    assert capsys.readouterr().out == ""
    assert "the engine could not start: the weights are cut short" in caplog.text


def test_the_welcome_is_a_command_that_can_be_pasted() -> None:
    text = welcome(URL)
    assert f"Ready at {URL} (the API is at {URL}/docs)" in text
    body = """'{"prompt": "a red circle on a blue background"}'"""
    assert f"curl -s {URL}/generate -H 'Content-Type: application/json' -d {body} -o " in text
    assert text.endswith("\n\n")


class FakeMetrics:
    """Writes down what it is told; ends the report after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds
        self.told: list[tuple[str, Any]] = []

    def load(self, stats: object) -> None:
        if not self.left:
            raise SDXLError("enough")
        self.left -= 1
        self.told.append(("load", stats))

    def units(self, units: list[UnitDone]) -> None:
        self.told.append(("units", units))

    def started(self, models: list[ModelSummary]) -> None:
        self.told.append(("started", models))

    def gpu(self, usage: Usage) -> None:
        self.told.append(("gpu", usage))


async def test_the_load_is_reported_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    usage, asked, metrics = Usage("1", 5, None), [], FakeMetrics(rounds=4)

    class GPU:
        def usage(self) -> Usage:
            assert threading.current_thread() is not threading.main_thread()
            return usage

    def gpus_of(devices: set[str]) -> list[GPU]:
        assert threading.current_thread() is not threading.main_thread()
        asked.append(devices)
        return [GPU()]

    monkeypatch.setattr(lifecycle, "gpus_of", gpus_of)
    generator: Any = FakeGenerator("loading", "ready")
    with pytest.raises(SDXLError, match="enough"):
        await report_load(generator, metrics, every_s=0.001)  # type: ignore[arg-type]
    names = [name for name, _ in metrics.told]
    # It is ready in the second round; the start is reported once.
    assert names == ["load", "units", *["load", "units", "started", "gpu"], *["load", "units",
                     "gpu"] * 2]  # fmt: skip
    assert asked == [{"cuda:1"}]
    told = dict(metrics.told)
    assert told["started"] == [MODEL]
    assert told["gpu"] == usage
    assert told["units"] == [UnitDone("base", 2, 0.1)]


async def test_the_load_is_reported_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    generator: Any = FakeGenerator("loading")
    with pytest.raises(SDXLError):
        await report_load(generator, FakeMetrics(rounds=2))  # type: ignore[arg-type]
    assert slept == [1.0, 1.0]
