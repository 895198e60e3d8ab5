"""Deadlines that were promised are kept, and nobody pays for it with starvation."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.fake import FakeExecutor
from sdxl_bento.engine.request import Status
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import DeadlineInfeasible
from tests.simulation.world import MODELS, Arrival, World, traffic, way

LONG = (4, 10, 20, 30)
# Two short units never run in a row while steps wait. The step that has to run between them may
# be that of a promise due later: the one wait that the ledger does not count. A request has two
# short units of its own.
FORCED_STEP_S = 0.03


@pytest.mark.parametrize("rate", [3, 8])
@pytest.mark.parametrize("slo_share", [0.5, 1.0])
def test_admitted_deadlines_are_met(rate: float, slo_share: float) -> None:
    """With exact costs and no faults, below and far above the capacity (about 4.5 a second).

    All but one in two hundred in time, and those miss by no more than two forced steps.
    """
    rng = random.Random(rate)
    world = World(queue=QueueLimits(), know_costs=True)
    world.run(traffic(rng, 800, rate, steps=LONG, slo_share=slo_share, slo=(1, 15)))
    world.check()
    promised = [r for r in world.requests.values() if r.deadline is not None]
    assert len(world.late) <= len(promised) / 200
    assert all(seconds <= 2 * FORCED_STEP_S for _, seconds in world.late)


def test_without_strangers_every_deadline_is_met() -> None:
    """One at a time leaves nothing to forced steps: whoever is let in, is in time."""
    rng = random.Random(1)
    world = World(Limits(max_rows=2), know_costs=True)
    world.run(traffic(rng, 500, 6, steps=LONG, slo_share=1, slo=(1, 15), refine_share=0))
    world.check()
    assert world.infeasible
    assert max((seconds for _, seconds in world.late), default=0.0) <= 2 * FORCED_STEP_S


def test_patient_requests_are_not_starved_by_urgent_ones() -> None:
    """A tenth of the device is theirs: ten times their work is the longest they wait."""
    urgent = (
        Arrival(f"u{i}", i * 0.1, way(20, 2), slo=2.0, priority=10) for i in range(2_000)
    )  # about three times what the device can do
    patient = [Arrival(f"p{i}", 5.0, way(30, 2)) for i in range(3)]
    world = World(queue=QueueLimits(), know_costs=True)
    world.run(chain(urgent, patient))
    world.check()
    work = 3 * 30 * 0.03
    for arrival in patient:
        request = world.requests[arrival.id]
        assert request.status is Status.FINISHED
        assert request.ended is not None
        assert request.ended - request.arrival < 1.5 * work / 0.1


def test_a_step_that_no_promise_can_spare_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model's step takes longer than the others' deadlines ever leave: 0.14 s of 0.2 s.

    By spare time alone it would not begin before the urgent ones stop coming, so what it is owed
    is counted until it suffices for a step.
    """
    fast = FakeExecutor.seconds
    slow = MODELS[1]
    monkeypatch.setattr(
        FakeExecutor,
        "seconds",
        lambda self, key, rows: fast(self, key, rows) * (5 if key.model == slow else 1),
    )
    seconds = 15
    urgent = (Arrival(f"u{i}", i / 60, way(4, 2), slo=0.2, size=512) for i in range(60 * seconds))
    world = World(queue=QueueLimits(), know_costs=True)
    world.run([*urgent, Arrival("patient", 1.0, way(20, 2), model=slow)])
    world.check()
    patient = world.requests["patient"]
    assert patient.ended is not None
    assert patient.ended < seconds / 2
    assert all(late < 2 * FORCED_STEP_S for _, late in world.late)


def test_short_requests_pass_long_ones() -> None:
    """Eight long ones fill the batch; a late short one does not wait for them to end."""
    long = [Arrival(f"l{i}", 0.0, way(50, 2)) for i in range(8)]
    world = World(know_costs=True).run([*long, Arrival("short", 1.0, way(4, 2))])
    short, slowest = world.requests["short"], world.requests["l7"]
    assert short.ended is not None
    assert slowest.ended is not None
    assert short.ended - short.arrival < 0.2 * (slowest.ended - slowest.arrival)


@pytest.mark.parametrize("seed", range(20))
def test_who_comes_back_when_told_is_let_in(seed: int) -> None:
    """Retry-After, obeyed on an otherwise idle system."""
    rng = random.Random(seed)
    world = World(know_costs=True)
    crowd = list(traffic(rng, 30, 20, steps=LONG, slo_share=1, slo=(2, 15)))
    for arrival in crowd:
        world._submit(arrival)
    late = Arrival("late", 0.0, way(20, 2), slo=1.2).request()
    late.deadline = world.clock.now + 1.2
    with pytest.raises(DeadlineInfeasible) as refusal:
        world.engine.submit(late)
    assert refusal.value.retry_after_s > 0
    assert refusal.value.estimate_s > 1.2
    back = world.clock.now + refusal.value.retry_after_s
    while world.clock.now < back and world.engine.step():
        pass
    world.clock.wait_until(back)
    late.deadline = world.clock.now + 1.2
    world.engine.submit(late)
    while world.engine.step():
        pass
    assert late.ended is not None
    assert late.ended <= late.deadline


def test_a_late_request_does_not_drag_others() -> None:
    """The device is five times slower for one model than was known: only that model suffers."""
    world = World(know_costs=True)
    slow, real = "base-b", world.executor.seconds
    world.executor.seconds = lambda key, rows: real(key, rows) * (5 if key.model == slow else 1)  # type: ignore[method-assign]
    hurt = [Arrival(f"h{i}", 0.0, way(30, 2), model=slow, slo=3.0) for i in range(2)]
    well = [Arrival(f"w{i}", 2.0 + i, way(20, 2), slo=4.0) for i in range(10)]
    world.run([*hurt, *well])
    world.check()
    assert {id_[0] for id_, _ in world.late} <= {"h"}
