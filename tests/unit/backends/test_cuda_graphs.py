"""Which shapes get a graph, and which graph runs: with a capture that records on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from sdxl_bento.backends.cuda_graphs import GraphedPart, capture_graph
from sdxl_bento.manifest import BackendInfo, Size

INFO = BackendInfo(
    backend="inductor",
    device="cuda:9.0",
    versions={},
    rows=(1, 2, 4),
    sizes=(Size(width=64, height=32), Size(width=32, height=32)),
)
Inputs = Mapping[str, torch.Tensor]


class Doubler:
    """A part that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.unloaded = False

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        self.calls += 1
        return inputs["sample"] * 2

    def unload(self) -> None:
        self.unloaded = True


class Recording:
    def __init__(self, inputs: Inputs) -> None:
        self.shape = inputs["sample"].shape
        self.freed = False

    def replay(self, inputs: Inputs) -> torch.Tensor:
        assert not self.freed
        assert inputs["sample"].shape == self.shape
        return inputs["sample"] * 2

    def free(self) -> None:
        self.freed = True


class Recorder:
    def __init__(self, error: str = "") -> None:
        self.made: list[Recording] = []
        self.error = error
        self.tried = 0

    def __call__(self, run: Any, inputs: Inputs) -> Recording:
        self.tried += 1
        if self.error:
            raise RuntimeError(self.error)
        self.made.append(Recording(inputs))
        return self.made[-1]


def sample(rows: int = 2, height: int = 4, width: int = 8) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(rows, 4, height, width)}


def test_a_named_shape_is_captured_once_and_replayed() -> None:
    part, capture = Doubler(), Recorder()
    graphed = GraphedPart(part, INFO, capture)
    for _ in range(3):
        inputs = sample()
        torch.testing.assert_close(graphed(inputs), inputs["sample"] * 2)
    assert (capture.tried, part.calls) == (1, 0)


@pytest.mark.parametrize("inputs", [sample(rows=3), sample(height=8), sample(height=8, width=4)])
def test_other_shapes_run_as_they_are(inputs: dict[str, torch.Tensor]) -> None:
    part, capture = Doubler(), Recorder()
    graphed = GraphedPart(part, INFO, capture)
    torch.testing.assert_close(graphed(inputs), inputs["sample"] * 2)
    assert (capture.tried, part.calls) == (0, 1)


def test_the_least_recently_used_graph_makes_room() -> None:
    capture = Recorder()
    graphed = GraphedPart(Doubler(), INFO, capture, most=2)
    for rows in (1, 2, 1, 4):
        graphed(sample(rows))
    one, two, four = capture.made
    assert [one.freed, two.freed, four.freed] == [False, True, False]
    graphed(sample(1))
    assert capture.tried == 3
    graphed(sample(2))
    assert capture.tried == 4


def test_tables_that_moved_need_a_graph_of_their_own() -> None:
    capture = Recorder()
    graphed = GraphedPart(Doubler(), INFO, capture)
    table = torch.zeros(2, 8, 16)
    for _ in range(2):
        graphed({**sample(), "down": table, "up": table, "slot": torch.zeros(2)})
    assert capture.tried == 1
    graphed({**sample(), "down": table.clone(), "up": table, "slot": torch.zeros(2)})
    assert capture.tried == 2


def test_a_shape_that_cannot_be_captured_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    part, capture = Doubler(), Recorder("CUDA out of memory")
    graphed = GraphedPart(part, INFO, capture)
    for _ in range(2):
        inputs = sample()
        torch.testing.assert_close(graphed(inputs), inputs["sample"] * 2)
    assert (capture.tried, part.calls) == (1, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph for [2, 4, 4, 8], running without: CUDA out of memory"
    ]


def test_unload_frees_all() -> None:
    part, capture = Doubler(), Recorder()
    graphed = GraphedPart(part, INFO, capture)
    graphed(sample(1))
    graphed(sample(2))
    graphed.unload()
    assert part.unloaded
    assert [made.freed for made in capture.made] == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_graph_replays_with_other_inputs() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 4, 3, padding=1).cuda().requires_grad_(False)

    class Convolution(Doubler):
        def __call__(self, inputs: Inputs) -> torch.Tensor:
            result: torch.Tensor = conv(inputs["sample"])
            return result

    graphed = GraphedPart(Convolution(), INFO, capture_graph)
    kept = []
    for rows in (2, 4, 2):
        inputs = {"sample": torch.randn(rows, 4, 4, 8, device="cuda")}
        kept.append((graphed(inputs), conv(inputs["sample"])))
    for replayed, wanted in kept:
        torch.testing.assert_close(replayed, wanted)
    graphed.unload()
