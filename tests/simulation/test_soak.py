"""A hundred thousand requests, with everything that can go wrong, in simulated time."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain

import pytest

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.fake import Faults
from sdxl_bento.engine.request import BatchKey, Stage, Status
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import InvalidInput
from tests.simulation.world import World, traffic

REQUESTS = 12_500
STEPS = (1, 1, 2, 3, 5)
PLACES = ((Stage.ENCODE, 0), (Stage.BASE, 0), (Stage.BASE, 1), (Stage.REFINE, 0), (Stage.DECODE, 0))


def faults(rng: random.Random, requests: int, memory: bool) -> Faults:
    def some(share: float) -> list[str]:
        return [f"r{i}" for i in range(requests) if rng.random() < share]

    def fits(key: BatchKey, rows: int, now: float) -> bool:
        room = 9 if int(now) % 20 else 5  # megapixels; somebody else takes memory now and then
        return rows * key.height * key.width <= room * 1_000_000

    return Faults(
        raises={id_: rng.choice(PLACES) for id_ in some(0.01)},
        not_finite={id_: rng.choice(PLACES) for id_ in some(0.02)},
        loads={id_: rng.uniform(0, 3) for id_ in some(0.05)},
        unfit={id_: InvalidInput("loras", id_, "one that fits") for id_ in some(0.01)},
        fits=fits if memory else None,
    )


@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_once_and_unharmed(seed: int) -> None:
    """Random arrivals, cancels, failures, out-of-memory and adapter loads on several models."""
    rng = random.Random(seed)
    world = World(
        Limits(max_rows=rng.choice((4, 8, 16)), max_running=rng.choice((4, 16, 32))),
        QueueLimits(max_requests=64) if seed % 2 else QueueLimits(10**6, 10**15),
        faults(rng, REQUESTS, memory=seed % 4 == 3),
        know_costs=seed % 2 == 0,
    )
    rate = (8, 12, 16, 20)[seed % 4]
    world.run(traffic(rng, REQUESTS, rate, steps=STEPS, cancel_share=0.1))
    world.check()
    statuses = Counter(request.status for request in world.requests.values())
    assert all(statuses[status] for status in (Status.FINISHED, Status.FAILED, Status.CANCELLED))
    assert len(world.requests) + len(world.refused) == REQUESTS


def test_a_burst_is_served_whole() -> None:
    """All at once: the queue is long, every result is right."""
    burst = traffic(random.Random(0), 2_000, 1e9, steps=STEPS)
    world = World(know_costs=True).run(chain(burst))
    world.check()
    assert all(request.status is Status.FINISHED for request in world.requests.values())
