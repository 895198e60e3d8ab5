"""Small random worlds: whatever the traffic and its faults, the invariants hold."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.fake import Faults, expected_result
from sdxl_bento.engine.request import Stage, Status
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import InvalidInput
from tests.simulation.world import MODELS, SIZES, Arrival, World, way

PLACE = st.tuples(st.sampled_from([Stage.ENCODE, Stage.BASE, Stage.DECODE]), st.just(0))
IDS = [f"r{i}" for i in range(8)]


@st.composite
def arrivals(draw: st.DrawFn, ids: list[str] = IDS) -> list[Arrival]:
    return [
        Arrival(
            id_,
            at=draw(st.floats(0, 3)),
            phases=way(
                draw(st.integers(1, 6)),
                draw(st.integers(1, 2)),
                draw(st.integers(0, 2)),
                draw(st.booleans()),
            ),
            model=draw(st.sampled_from(MODELS)),
            size=draw(st.sampled_from(SIZES)),
            slo=draw(st.none() | st.floats(0.05, 5)),
            priority=draw(st.integers(-10, 10)),
            cancel_after=draw(st.none() | st.floats(0, 1)),
        )
        for id_ in ids[: draw(st.integers(1, len(ids)))]
    ]


some_faults = st.builds(
    Faults,
    raises=st.dictionaries(st.sampled_from(IDS), PLACE, max_size=2),
    not_finite=st.dictionaries(st.sampled_from(IDS), PLACE, max_size=2),
    loads=st.dictionaries(st.sampled_from(IDS), st.floats(0, 2), max_size=3),
    unfit=st.dictionaries(
        st.sampled_from(IDS), st.just(InvalidInput("loras", "x", "one that fits")), max_size=1
    ),
    fits=st.none() | st.integers(1, 16).map(lambda most: lambda key, rows, now: rows <= most),
)
limits = st.builds(
    Limits,
    max_rows=st.integers(1, 8),
    max_pixels=st.sampled_from([512 * 512, 4_000_000, 16_000_000]),
    max_running=st.integers(1, 6),
)
queues = st.builds(QueueLimits, st.integers(0, 8), st.sampled_from([10**6, 10**9]))
quiet = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quiet
@given(arrivals(), some_faults, limits, queues, st.booleans())
def test_every_request_ends_once_and_unharmed(
    traffic: list[Arrival], faults: Faults, limits: Limits, queue: QueueLimits, know_costs: bool
) -> None:
    """Results of the finished ones are checked in `World.check`, against the solo run's."""
    World(limits, queue, faults, know_costs).run(traffic).check()


@quiet
@given(arrivals(), some_faults)
def test_who_is_well_finishes(traffic: list[Arrival], faults: Faults) -> None:
    """Neither a batch-mate's failure nor a shortage of memory ends a request that is sound."""
    roomy = Faults(faults.raises, faults.not_finite, faults.loads, faults.unfit, _two_rows)
    world = World(faults=roomy).run(traffic)
    world.check()
    sick = {*faults.raises, *faults.not_finite, *faults.unfit}
    for id_, request in world.requests.items():
        if id_ not in sick and not request.cancelling:
            assert request.status is Status.FINISHED


@quiet
@given(arrivals(), st.randoms(use_true_random=False))
def test_order_of_arrival_changes_no_result(traffic: list[Arrival], rng: object) -> None:
    """The same requests at other times, in other batches, give the same pictures."""
    worlds = [World(limits=Limits(max_rows=rows)) for rows in (2, 16)]
    patient = [Arrival(a.id, a.at, a.phases, a.model, a.size) for a in traffic]
    shuffled = list(patient)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    moved = [
        Arrival(a.id, b.at, a.phases, a.model, a.size)
        for a, b in zip(patient, shuffled, strict=True)
    ]
    for world, given_order in zip(worlds, (patient, moved), strict=True):
        world.run(given_order).check()
    for id_, request in worlds[0].requests.items():
        assert request.result == worlds[1].requests[id_].result == expected_result(request)


@quiet
@given(arrivals(), st.integers(0, 40), st.sampled_from(IDS))
def test_a_cancelled_request_is_gone_at_the_next_step(
    traffic: list[Arrival], after: int, id_: str
) -> None:
    """It joins no further unit, and those in flight, two at most, are all that runs of it."""
    world = World()
    for arrival in traffic:
        request = arrival.request()
        request.deadline = None
        world.requests[arrival.id] = request
        request.on_end = world._count_end
        world.engine.submit(request)
    for _ in range(after):
        world.engine.step()
    request = world.requests.get(id_)
    if request is None or request.has_ended:
        return
    made = (request.phase, request.step)
    assert request.in_flight <= 2
    world.engine.cancel(id_)
    world.engine.step()
    assert request.status is Status.CANCELLED
    assert (request.phase, request.step) == made
    while world.engine.step():
        pass
    world.check()


def _two_rows(key: object, rows: int, now: float) -> bool:
    return rows <= 2
