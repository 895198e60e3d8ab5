"""Calls through a real engine on a fake device: progress, cancelling, timings, fewer steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import pytest

from sdxl_bento.diffusion.plan import Job, plan
from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.async_engine import AsyncEngine
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.fake import FakeClock, FakeExecutor, Faults, UnitCost, expected_result
from sdxl_bento.engine.request import Request, Stage
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import (
    DeadlineInfeasible,
    InvalidInput,
    NumericalError,
    Overloaded,
    RequestCancelled,
    RequestFailed,
    RequestNotFound,
)
from sdxl_bento.order import InputImage
from sdxl_bento.serving.calls import Call, Calls, is_meant
from sdxl_bento.serving.results import Generation, Progress
from tests.support.loaded_models import loaded, resolved

MODEL = loaded(refiner=True)
# Seconds of a unit by stage, whatever its rows.
COSTS: Mapping[Stage, UnitCost] = {
    Stage.ENCODE: UnitCost(1.0, 0.0),
    Stage.IMAGE: UnitCost(0.5, 0.0),
    Stage.BASE: UnitCost(10.0, 0.0),
    Stage.REFINE: UnitCost(100.0, 0.0),
    Stage.DECODE: UnitCost(1000.0, 0.0),
}
FOREVER = 1e6


class World:
    """One engine in its thread, and the calls that it draws."""

    def __init__(self, max_running: int = 16, max_queue: int = 64, **faults: Any) -> None:
        self.limits = Limits(max_running=max_running)
        self.queue_limits = QueueLimits(max_requests=max_queue)
        self.clock = FakeClock(50.0)
        self.executor = FakeExecutor(self.clock, COSTS, Faults(**faults))
        self.engine = AsyncEngine(lambda wake: self.build())
        self.calls = Calls(self.engine)
        self.progress: list[Progress] = []

    def build(self) -> Engine:
        return Engine(self.executor, self.limits, self.queue_limits, clock=self.clock)

    async def start(self) -> World:
        self.engine.start()
        while self.engine.state != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return self

    def call(self, request_id: str = "r", *, task: Any = "generate", **params: Any) -> Call:
        given = {"num_inference_steps": 3, "guidance_scale": 1.0, **params}
        return Call(request_id, resolved(MODEL, task, **given), partial(plan, facts=MODEL.facts))

    async def draw(self, request_id: str = "r", skip: Any = (), **params: Any) -> Generation:
        call = self.call(request_id, **params)
        async with asyncio.timeout(20):
            return await self.calls.run(call, self.progress.append, skip)

    async def until(self, **counts: int) -> None:
        """Requests that lack an adapter count as running, as they hold a place."""
        async with asyncio.timeout(20):
            while counts.items() - self.engine.counts().items():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def load_adapters(self) -> None:
        self.clock.now += FOREVER
        self.engine.wake()


Open = Callable[..., Any]


@pytest.fixture
async def world() -> AsyncIterator[Open]:
    opened: list[World] = []

    async def open_one(**faults: Any) -> World:
        opened.append(World(**faults))
        return await opened[-1].start()

    yield open_one
    for each in opened:
        await each.engine.stop(0)


def drawn_by(call: Call) -> list[object]:
    return [expected_result(request) for request in call.requests.values()]


async def test_each_picture_is_a_request_with_its_own_seed(world: Open) -> None:
    here = await world()
    call = here.call(num_images=3)
    generation = await here.calls.run(call)
    assert list(call.requests) == [0, 1, 2]
    assert [request.id for request in call.requests.values()] == ["r/0", "r/1", "r/2"]
    assert [image.image for image in generation.images] == drawn_by(call)
    assert [(each.index, each.seed, each.steps) for each in generation.images] == [
        (0, 5, 3), (1, 6, 3), (2, 7, 3),
    ]  # fmt: skip
    jobs: list[Any] = [request.payload for request in call.requests.values()]
    assert [job.params.seed for job in jobs] == [5, 6, 7]
    assert generation.request_id == "r"
    assert generation.order == call.order


async def test_what_is_known_already_is_not_drawn(world: Open) -> None:
    here = await world()
    generation = await here.draw(skip={0, 2}, num_images=4)
    assert [(image.index, image.seed) for image in generation.images] == [(1, 6), (3, 8)]
    assert here.executor.released == ["r/1", "r/3"]


async def test_a_request_says_all_that_the_engine_needs(world: Open) -> None:
    call = (await world()).call(width=64, height=96, priority=3, slo_ms=2500)
    call.submit(50.0, ())
    request = call.requests[0]
    assert (request.model, request.width, request.height) == ("tiny", 64, 96)
    assert (request.arrival, request.deadline, request.priority) == (50.0, 52.5, 3)
    job = request.payload
    assert isinstance(job, Job)
    assert request.phases == job.phases()
    other = (await world()).call()
    other.submit(50.0, ())
    assert (other.requests[0].deadline, other.requests[0].priority) == (None, 0)


def steps_of(progress: list[Progress]) -> list[tuple[str, int]]:
    return [(each.stage, each.step) for each in progress]


async def test_progress_counts_through_the_stages(world: Open) -> None:
    here = await world()
    await here.draw(num_inference_steps=4, refiner=True, high_noise_frac=0.5)
    assert steps_of(here.progress) == [
        ("queued", 0), ("encode", 0), ("base", 1), ("base", 2), ("refine", 3), ("refine", 4),
        ("decode", 4),
    ]  # fmt: skip
    assert {each.steps for each in here.progress} == {4}
    assert {(each.request_id, each.index) for each in here.progress} == {("r", 0)}
    assert all(each.preview is None for each in here.progress)


async def test_progress_of_a_picture_that_is_redrawn(world: Open) -> None:
    here = await world()
    picture: Any = type("Picture", (), {"size": (128, 128)})()
    call = here.call(task="img2img", num_inference_steps=10, strength=0.2)
    order = type(call.order)("img2img", call.order.params, {"image": InputImage(picture, "0" * 64)})
    generation = await here.calls.run(Call("r", order, call.plan), here.progress.append)
    assert steps_of(here.progress) == [
        ("queued", 0), ("encode", 0), ("image", 0), ("base", 1), ("base", 2), ("decode", 2),
    ]  # fmt: skip
    assert {each.steps for each in here.progress} == {2}
    assert generation.timings.encode_s == 1.5  # the prompt and the picture
    assert generation.params.num_inference_steps == 10  # as it was asked for, and can be again


async def test_progress_goes_by_picture(world: Open) -> None:
    here = await world(max_running=1, loads={"r/0": FOREVER})
    drawing = asyncio.ensure_future(here.draw(num_images=2, num_inference_steps=1))
    await here.until(waiting=1, running=1)
    assert [(each.index, each.stage) for each in here.progress] == [(0, "queued"), (1, "queued")]
    assert {each.position for each in here.progress} <= {0, 1, 2}
    here.load_adapters()
    await drawing
    for index in (0, 1):
        own = [each for each in here.progress if each.index == index]
        assert steps_of(own) == [("queued", 0), ("encode", 0), ("base", 1), ("decode", 1)]
        assert [each.position for each in own[1:]] == [0, 0, 0]


async def test_the_first_progress_tells_the_position(world: Open) -> None:
    here = await world(max_running=1, loads={"first/0": FOREVER})
    first = asyncio.ensure_future(here.draw("first"))
    await here.until(running=1)
    second = asyncio.ensure_future(here.draw("second", num_images=2))
    await here.until(waiting=2)
    told = [each for each in here.progress if each.request_id == "second"]
    assert [(each.index, each.stage, each.position) for each in told] == [
        (0, "queued", 1), (1, "queued", 2),
    ]  # fmt: skip
    here.load_adapters()
    await asyncio.gather(first, second)


async def test_a_refused_call_reports_no_progress(world: Open) -> None:
    """Otherwise a stream would have begun, with the status 200, before it is refused."""
    here = await world(max_running=1, max_queue=1, loads={"first/0": FOREVER})
    first = asyncio.ensure_future(here.draw("first"))
    await here.until(running=1)
    here.progress.clear()
    for count in (2, 3):  # some pictures of the call, or all but the first, find no place
        with pytest.raises(Overloaded):
            await here.draw("second", num_images=count)
        await here.until(waiting=0)
        assert here.progress == []
    here.load_adapters()
    await first
    assert [each.stage for each in here.progress][-1] == "decode"
    here.progress.clear()
    with pytest.raises(DeadlineInfeasible):  # what a step takes is known now
        await here.draw("late", slo_ms=1)
    assert here.progress == []


async def test_previews_are_handed_on(world: Open) -> None:
    here = await world()
    call = here.call()
    call.submit(0.0, ())
    report = call.reporter(0, here.progress.append)
    assert report is not None
    step: Any = type("StepDone", (), {"stage": Stage.BASE, "step": 1, "preview": "a preview"})()
    report(step)
    assert here.progress == [Progress("r", 0, "base", 1, 3, 0, "a preview")]  # type: ignore[arg-type]
    assert call.reporter(0, None) is None


async def test_timings_are_those_of_the_device(world: Open) -> None:
    here = await world()
    timings = (await here.draw(refiner=True, high_noise_frac=0.5, num_inference_steps=4)).timings
    assert (timings.encode_s, timings.base_s) == (1.0, 20.0)
    assert (timings.refine_s, timings.decode_s) == (200.0, 1000.0)
    assert (timings.queue_s, timings.total_s) == (0.0, 1221.0)


async def test_timings_of_a_call_that_waited(world: Open) -> None:
    """One picture runs at a time, for 1031 s; the call has two, and another one before them."""
    here = await world(max_running=1, loads={"other/0": FOREVER})
    other = asyncio.ensure_future(here.draw("other"))
    await here.until(running=1)
    drawing = asyncio.ensure_future(here.draw(num_images=2))
    await here.until(waiting=2)
    here.load_adapters()
    timings = (await drawing).timings
    assert timings.queue_s == FOREVER + 1031  # until the first of the pictures began
    assert timings.total_s == FOREVER + 3 * 1031  # until the last has ended
    assert timings.base_s == 30.0
    assert (await other).timings.queue_s == 0


async def test_a_call_can_be_cancelled_by_its_id(world: Open) -> None:
    here = await world(loads={"r/0": FOREVER, "r/1": FOREVER})
    drawing = asyncio.ensure_future(here.draw(num_images=2))
    await here.until(running=2)
    with pytest.raises(RequestNotFound, match="'q'"):
        here.calls.cancel("q")
    here.calls.cancel("r")
    with pytest.raises(RequestCancelled):
        await drawing
    with pytest.raises(RequestNotFound):
        here.calls.cancel("r")
    assert here.engine.counts() == {"waiting": 0, "running": 0}


async def test_all_instances_of_a_call_can_be_cancelled_at_once(world: Open) -> None:
    names = ["r.0", "r.1", "other.0"]
    here = await world(loads={f"{name}/0": FOREVER for name in names})
    drawings = [asyncio.ensure_future(here.draw(name)) for name in names]
    await here.until(running=3)
    here.calls.cancel("r")
    for drawing in drawings[:2]:
        with pytest.raises(RequestCancelled):
            await drawing
    assert here.engine.counts()["running"] == 1
    here.load_adapters()
    await drawings[2]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("r", True), ("r.0", True), ("r.12", True), ("r.x", False), ("r.", False), ("r0", False),
     ("rr.0", False), ("r.0.1", False), (".0", False), ("", False)],
)  # fmt: skip
def test_which_calls_an_id_means(name: str, meant: bool) -> None:
    assert is_meant("r", name) is meant


def test_an_instance_can_be_meant_alone() -> None:
    assert is_meant("r.1", "r.1")
    assert not is_meant("r.1", "r.2")
    assert not is_meant("r.1", "r")


async def test_an_id_may_be_used_again_but_not_at_once(world: Open) -> None:
    here = await world(loads={"r/0": FOREVER})
    drawing = asyncio.ensure_future(here.draw())
    await here.until(running=1)
    with pytest.raises(InvalidInput, match="an id that is not in use") as caught:
        await here.draw()
    assert caught.value.field == "request_id"
    here.load_adapters()
    await drawing
    here.executor.faults.loads = {}
    await here.draw()


async def test_the_position_in_the_queue(world: Open) -> None:
    here = await world(max_running=1, loads={"first/0": FOREVER})
    first = asyncio.ensure_future(here.draw("first"))
    await here.until(running=1)
    rest = [asyncio.ensure_future(here.draw(name, num_images=2)) for name in ("second", "third")]
    await here.until(waiting=4)
    assert here.calls.position("first") == 0
    assert (here.calls.position("second"), here.calls.position("second", 1)) == (1, 2)
    assert (here.calls.position("third", 1), here.calls.position("third", 2)) == (4, 0)
    assert here.calls.position("fourth") == 0
    here.load_adapters()
    await asyncio.gather(first, *rest)
    assert here.calls.position("second") == 0


async def test_whoever_leaves_takes_the_pictures_along(world: Open) -> None:
    here = await world(loads={"r/0": FOREVER, "r/1": FOREVER})
    drawing = asyncio.ensure_future(here.draw(num_images=2))
    await here.until(running=2)
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    await here.until(running=0)
    assert here.calls.position("r") == 0
    with pytest.raises(RequestNotFound):
        here.calls.cancel("r")


async def test_a_picture_that_fails_ends_its_call_and_no_other(world: Open) -> None:
    here = await world(
        not_finite={"r/0": (Stage.BASE, 1)}, loads={"r/1": FOREVER, "other/0": FOREVER}
    )
    other = asyncio.ensure_future(here.draw("other"))
    await here.until(running=1)
    with pytest.raises(NumericalError):
        await here.draw(num_images=2)
    await here.until(running=1)
    here.load_adapters()
    assert len((await other).images) == 1


async def test_an_order_that_cannot_be_planned_leaves_nothing_behind(world: Open) -> None:
    here = await world()
    with pytest.raises(InvalidInput, match="high_noise_frac"):
        await here.draw(num_inference_steps=1, refiner=True)
    await here.draw()


async def test_steps_are_taken_off_to_be_in_time(world: Open) -> None:
    """A step takes 10 s here, all else 1001 s; a tenth of the time is kept in reserve."""
    here = await world()
    for _ in range(2):
        await here.draw("learn", num_inference_steps=2)
    asked = {"num_inference_steps": 100, "slo_ms": 1_450_000, "seed": 8}
    with pytest.raises(DeadlineInfeasible):
        await here.draw(**asked)
    generation = await here.draw(**asked, degrade_min_steps=5)
    steps = generation.params.num_inference_steps
    assert 5 < steps < 45
    assert generation.images[0].steps == steps
    assert generation.timings.base_s == 10.0 * steps
    assert generation.images[0].seed == 8
    own = [each for each in here.progress if each.steps == 100]
    assert own[-1].stage == "decode"
    with pytest.raises(DeadlineInfeasible):
        await here.draw(**asked, degrade_min_steps=90)


async def test_fewer_steps_are_planned_for_each_picture(world: Open) -> None:
    call = (await world()).call(num_images=2, slo_ms=9000, degrade_min_steps=2)
    call.submit(0.0, ())
    fewer = call.fewer(1)
    assert fewer is not None
    assert (fewer.asked, fewer.floor) == (3, 2)
    phases, job = fewer.plan(2)
    assert isinstance(job, Job)
    assert (job.params.num_inference_steps, job.params.seed) == (2, 6)
    assert phases == job.phases()
    assert (await world()).call().fewer(0) is None


async def test_a_call_has_the_steps_of_its_shortest_picture(world: Open) -> None:
    here = await world()
    call = here.call(num_images=2)
    call.submit(0.0, ())
    job = here.call(num_inference_steps=2).plan(here.call(num_inference_steps=2).order)
    call.requests[1].plan(job.phases(), job.for_image(1))
    generation = call.generation(["a", "b"])
    assert [image.steps for image in generation.images] == [3, 2]
    assert generation.params.num_inference_steps == 2


async def test_an_engine_that_fails_says_so(world: Open) -> None:
    here = await world(raises={"r/0": (Stage.BASE, 0)})
    with pytest.raises(RequestFailed, match="injected"):
        await here.draw()


def test_a_request_that_never_began_took_no_time() -> None:
    call = World().call()
    call.submit(7.0, ())
    request: Request = call.requests[0]
    timings = call.generation(["a"]).timings
    assert (timings.queue_s, timings.total_s) == (0.0, 0.0)
    request.started, request.ended = 9.0, 12.0
    timings = call.generation(["a"]).timings
    assert (timings.queue_s, timings.total_s) == (2.0, 5.0)


def test_a_call_arrives_with_its_first_picture() -> None:
    call = World().call(num_images=2)
    call.submit(7.0, ())
    for request, arrival in zip(call.requests.values(), (7.0, 8.0), strict=True):
        request.arrival, request.started, request.ended = arrival, 9.0, 12.0
    timings = call.generation(["a", "b"]).timings
    assert (timings.queue_s, timings.total_s) == (2.0, 5.0)
