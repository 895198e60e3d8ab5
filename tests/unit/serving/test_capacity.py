"""What an idle server cannot take is told apart from what it cannot take just now."""

from __future__ import annotations

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.fake import FakeClock, FakeExecutor
from sdxl_bento.engine.request import Phase, Request, Stage
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import Overloaded
from sdxl_bento.serving.capacity import Capacity

PHASES = (Phase(Stage.ENCODE, 1, 1), Phase(Stage.BASE, 1000, 1), Phase(Stage.DECODE, 1, 1))


def takes(capacity: Capacity, sides: list[int], *, at_once: bool) -> bool:
    """Whether an idle engine takes pictures of these sides; `at_once`: before it starts any."""
    clock = FakeClock()
    limits = Limits(max_running=capacity.running)
    queue = QueueLimits(capacity.waiting, capacity.waiting_pixels)
    engine = Engine(FakeExecutor(clock), limits, queue, clock)
    try:
        for index, side in enumerate(sides):
            engine.submit(Request(str(index), "m", side, side, PHASES))
            if not at_once:
                engine.step()
    except Overloaded:
        return False
    return True


@pytest.mark.parametrize(
    "capacity", [Capacity(2, 4, 10**9), Capacity(1, 0, 1), Capacity(3, 5, 25_000)]
)
def test_it_is_what_an_idle_engine_takes(capacity: Capacity) -> None:
    for side in (64, 100):
        for count in range(1, 10):
            sides = [side] * count
            fits = capacity.fits([side * side] * count)
            assert takes(capacity, sides, at_once=True) == fits, (side, count)
            assert takes(capacity, sides, at_once=False) == fits, (side, count)
            assert (count <= capacity.most(side * side)) == fits, (side, count)


def test_pictures_of_several_sizes() -> None:
    capacity = Capacity(2, 3, 20_000)
    for sides in ([200, 200, 100, 100], [200, 200, 100, 100, 64], [100, 64, 200], [64] * 6):
        fits = capacity.fits([side * side for side in sides])
        assert takes(capacity, sides, at_once=True) == fits, sides
    assert capacity.fits([40_000, 40_000, 10_000, 10_000])
    assert not capacity.fits([10_000, 10_000, 40_000])


def test_the_settings() -> None:
    settings = Settings(max_running=2, max_queue=4, max_queue_megapixels=1.5)
    assert Capacity.of(settings) == Capacity(2, 4, 1_500_000)
    assert Capacity.of(settings).pictures == 6
