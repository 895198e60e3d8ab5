"""What `generate` and `bench` say of their calls."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from sdxl_bento.cli import bench
from sdxl_bento.cli.bench import _report, _row, _Seeds
from sdxl_bento.cli.drawer import Result
from sdxl_bento.cli.generate import _summary
from sdxl_bento.cli.load import Level
from sdxl_bento.cli.progress import Bars
from sdxl_bento.cli.terminal import size_text
from sdxl_bento.serving.results import Progress


def result(*seeds: int, total_ms: float = 1500.0, queue_ms: float = 0.0) -> Result:
    params = {"num_inference_steps": 25, "sampler": "euler", "width": 128, "height": 96}
    answer: dict[str, Any] = {
        "model": "tiny",
        "params": params,
        "images": [{"seed": seed} for seed in seeds],
        "timings": {"total_ms": total_ms, "queue_ms": queue_ms},
    }
    return Result(answer, ())


@pytest.mark.parametrize(
    ("of", "seconds", "line"),
    [
        (result(7), 2.4, "seed 7 · 25 steps · euler · 128x96 · tiny · 1.5 s"),
        (result(7, 8), 2.5, "seeds 7, 8 · 25 steps · euler · 128x96 · tiny · 1.5 s; 2.5 s in all"),
        (
            result(7, queue_ms=100.0),
            1.5,
            "seed 7 · 25 steps · euler · 128x96 · tiny · 1.5 s, 0.1 s of it in the queue",
        ),
        (result(7, queue_ms=99.0), 1.5, "seed 7 · 25 steps · euler · 128x96 · tiny · 1.5 s"),
    ],
)
def test_one_line_about_a_call(of: Result, seconds: float, line: str) -> None:
    assert _summary(of, seconds) == line


def test_the_line_says_what_a_picture_was_cut_from() -> None:
    cut = Result(result(7).answer | {"cut_from": "129x97"}, ())
    assert "128x96, cut from 129x97 · tiny" in _summary(cut, 1.5)


def test_no_seed_comes_twice() -> None:
    seeds = [_Seeds() for _ in range(3)]
    drawn = [each.next() for each in seeds for _ in range(5)]
    assert len(set(drawn)) == 15
    assert max(drawn) < 2**63


def test_figures_as_a_table_and_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Level(2, 3, latencies=[0.5, 1.5], queued=[0.25, 0.25], elapsed=4.0, cut_short=True)
    good.errors["overloaded"] = 1
    none = Level(4, 1, elapsed=1.0)
    none.errors["timeout_error"] = 2
    assert _row(good.figures()) == (
        "2", "2", "0.5", "1.000", "1.400", "1.490", "0.250", "1 overloaded",
    )  # fmt: skip
    assert _row(none.figures()) == ("4", "0", "0", "", "", "", "", "2 timeout_error")
    said: list[str] = []
    monkeypatch.setattr(bench, "say", said.append)
    _report([good, none], {}, as_json=False)
    assert said == ["2 clients: stopped after 4 s (--seconds)"]
    capsys.readouterr()
    _report([good], {"prompt": "x"}, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["call"], report["levels"]) == ({"prompt": "x"}, [good.figures()])
    _report([], {}, as_json=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("pictures", "progress", "shown"),
    [
        (1, Progress("r", 0, "base", 3, 25), "drawing"),
        (1, Progress("r", 0, "queued", 0, 0, position=2), "queued, number 2"),
        (1, Progress("r", 0, "queued", 0, 0), "queued"),
        (2, Progress("r", 1, "decode", 25, 25), "picture 2 of 2: decoding"),
        (2, Progress("r", 0, "new stage", 1, 2), "picture 1 of 2: new stage"),
    ],
)
def test_bars(pictures: int, progress: Progress, shown: str) -> None:
    with Bars(Console(file=io.StringIO(), force_terminal=True), pictures) as bars:
        bars.update(progress)
        bars.update(Progress("r", pictures, "base", 1, 2))  # a picture that was not asked for
        tasks = bars._bars.tasks
    assert len(tasks) == pictures
    task = tasks[progress.index]
    assert (task.description, task.completed) == (shown, progress.step)
    assert task.total == (progress.steps or None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (6.94e9, "6.94 GB"), (2e12, "2 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text
