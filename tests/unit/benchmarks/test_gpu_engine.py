"""The GPU benchmark's way of stepping, on a miniature; and that a step reads nothing back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.full_size import TINY, serve
from benchmarks.stepping import Bench, newcomer, steps_per_second
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.engine.request import Stage

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[3]
# On a GPU each of these makes the host wait until the device has caught up.
READS_BACK = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")


@pytest.fixture(scope="module")
def bench() -> Bench:
    placement = Placement.choose("cpu", "fp32")
    served, facts = serve(placement, TINY)
    return Bench(served, facts, size=64, steps=4, device=placement.device)


class Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_steps_are_counted(bench: Bench) -> None:
    found = steps_per_second(bench, 2)
    assert found["rows"] == 4
    assert found["steps_per_s"] == pytest.approx(2e3 / found["ms_per_unit"])
    assert 0.5 < found["busy"] <= 1


def test_a_newcomer_waits_for_no_more_than_three_steps(bench: Bench) -> None:
    assert newcomer(bench)["steps_of_others_before_its_first"] <= 3


def test_a_step_reads_nothing_back_from_the_device(bench: Bench) -> None:
    requests = bench.submit(3, 6)
    for request in requests:
        bench.until(Stage.BASE, 1, request)
    with Recorded() as recorded:
        bench.until(Stage.BASE, 3, requests[-1])
    bench.drain()
    assert sum(recorded.seen.values()) > 100  # it has seen the steps
    assert not {name: recorded.seen[name] for name in READS_BACK if recorded.seen[name]}


def test_activations_stay_in_range(bench: Bench) -> None:
    [request] = bench.submit(1, 2)
    bench.until(Stage.BASE, 1, request)
    bench.drain()
    bench.check(request)
    assert request.result is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "no CUDA device" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["skipped"] == "no CUDA device"
