"""The calls that are being drawn. The engine has one request for each picture of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdxl_bento.engine.request import Fewer, Phase, Request, Stage
from sdxl_bento.errors import InvalidInput, RequestNotFound
from sdxl_bento.serving.requests import to_request
from sdxl_bento.serving.results import GeneratedImage, Generation, Progress, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.diffusion.plan import Job
    from sdxl_bento.engine.async_engine import AsyncEngine, StepDone
    from sdxl_bento.order import Resolved

OnProgress = Callable[[Progress], None]
PlanOrder = Callable[["Resolved"], "Job"]


@dataclass
class Call:
    """A call that is being drawn.

    Attributes:
        request_id: the id of the call; the request of picture `i` is called `<request_id>/<i>`.
        order: what is drawn.
        plan: gives the job of an order's first picture.
        requests: the engine's requests, by the index of their picture.
        refused: the engine has not taken all of them. Then no progress is reported of the others,
            because a refusal of one picture refuses the call.
    """

    request_id: str
    order: Resolved
    plan: PlanOrder
    requests: dict[int, Request] = field(default_factory=dict)
    refused: bool = False

    def submit(self, now: float, skip: Collection[int]) -> None:
        """Create the requests of all pictures that are not in `skip`, with `now` as their arrival.

        Raises InvalidInput if the order cannot be planned.
        """
        params = self.order.params
        first = self.plan(self.order)
        for index in range(params.num_images):
            if index not in skip:
                request_id = f"{self.request_id}/{index}"
                job = first.for_image(index)
                self.requests[index] = to_request(request_id, job, now, params.slo_ms)

    def fewer(self, index: int) -> Fewer | None:
        """The permission to draw picture `index` with fewer steps, if the caller gave it."""
        params = self.order.params
        if params.degrade_min_steps is None:
            return None

        def plan(steps: int) -> tuple[tuple[Phase, ...], object]:
            job = self.plan(self.order.with_params(num_inference_steps=steps)).for_image(index)
            return job.phases(), job

        return Fewer(params.num_inference_steps, params.degrade_min_steps, plan)

    def reporter(
        self, index: int, on_progress: OnProgress | None
    ) -> Callable[[StepDone], None] | None:
        """A function that reports the engine's steps of picture `index` to `on_progress`."""
        if on_progress is None:
            return None
        request = self.requests[index]
        steps = _denoising_steps(request)
        base_steps = sum(phase.steps for phase in request.phases if phase.stage is Stage.BASE)

        def report(done: StepDone) -> None:
            if self.refused:
                return
            step = {
                Stage.ENCODE: 0,
                Stage.IMAGE: 0,
                Stage.BASE: done.step,
                Stage.REFINE: base_steps + done.step,
                Stage.DECODE: steps,
            }[done.stage]
            preview: Image | None = done.preview  # type: ignore[assignment]  # the runner's
            stage = str(done.stage)
            on_progress(Progress(self.request_id, index, stage, step, steps, 0, preview))

        return report

    def generation(self, results: list[object]) -> Generation:
        """The drawn call, from the engine's results in the order of `requests`."""
        images = tuple(
            GeneratedImage(
                image=result,  # type: ignore[arg-type]  # the runner's is a picture
                seed=self.order.params.seed + index,
                index=index,
                steps=_drawn_steps(request),
            )
            for (index, request), result in zip(self.requests.items(), results, strict=True)
        )
        # The number of steps that were really made may be lower where the caller allowed that.
        steps = min(_drawn_steps(request) for request in self.requests.values())
        order = self.order.with_params(num_inference_steps=steps)
        return Generation(self.request_id, order, images, self._timings())

    def _timings(self) -> Timings:
        requests = list(self.requests.values())
        arrival = requests[0].arrival
        first = min(request.started or request.arrival for request in requests)
        last = max(request.ended or request.arrival for request in requests)

        def spent(stage: Stage) -> float:
            return max(request.stage_s.get(stage, 0.0) for request in requests)

        return Timings(
            queue_s=first - arrival,
            encode_s=spent(Stage.ENCODE) + spent(Stage.IMAGE),
            base_s=spent(Stage.BASE),
            refine_s=spent(Stage.REFINE),
            decode_s=spent(Stage.DECODE),
            total_s=last - arrival,
        )


class Calls:
    """The calls of this process that have not ended, by their ids."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._running: dict[str, Call] = {}

    async def run(
        self, call: Call, on_progress: OnProgress | None = None, skip: Collection[int] = ()
    ) -> Generation:
        """Draw the pictures of a call that are not in `skip`.

        Raises:
            InvalidInput, Refused, RequestCancelled, RequestFailed: see `errors`.
        """
        now = self._engine.engine.clock()
        call.submit(now, skip)
        if call.request_id in self._running:
            raise InvalidInput("request_id", call.request_id, "an id that is not in use")
        self._running[call.request_id] = call
        try:
            return call.generation(await self._gather(call, on_progress))
        finally:
            del self._running[call.request_id]

    def cancel(self, request_id: str) -> None:
        """Cancel a call: the task that awaits it gets RequestCancelled.

        One HTTP call may hold several instances. Each of them is a call here, with the id `id.0`,
        `id.1` and so on, and `id` alone cancels all of them.

        Raises:
            RequestNotFound: no call with that id is running.
        """
        calls = [call for name, call in self._running.items() if is_meant(request_id, name)]
        if not calls:
            raise RequestNotFound(request_id)
        for call in calls:
            for request in call.requests.values():
                self._engine.cancel(request.id)

    def position(self, request_id: str, index: int = 0) -> int:
        """The position of a call's picture in the queue, from 1; 0 once it runs or has ended."""
        call = self._running.get(request_id)
        request = call.requests.get(index) if call is not None else None
        return 0 if request is None else self._engine.position(request)

    async def _gather(self, call: Call, on_progress: OnProgress | None) -> list[object]:
        """Run all requests of a call. If one fails, the others are cancelled and the call fails."""
        tasks = [
            asyncio.ensure_future(
                self._engine.run(request, call.reporter(index, on_progress), call.fewer(index))
            )
            for index, request in call.requests.items()
        ]
        try:
            if on_progress is not None:
                await asyncio.sleep(0)  # so that the tasks submit their requests
                call.refused = any(task.done() for task in tasks)  # nothing else ends so early
                if not call.refused:
                    self._report_positions(call, on_progress)
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _report_positions(self, call: Call, on_progress: OnProgress) -> None:
        for index, request in call.requests.items():
            position = self._engine.position(request)
            steps = _denoising_steps(request)
            on_progress(Progress(call.request_id, index, "queued", 0, steps, position))


def is_meant(request_id: str, name: str) -> bool:
    """Whether `request_id` is the name of a call, or the id whose instance the call is."""
    whole, dot, index = name.rpartition(".")
    return name == request_id or (dot == "." and whole == request_id and index.isdigit())


def _denoising_steps(request: Request) -> int:
    return sum(phase.steps for phase in request.phases if phase.stage.denoises)


def _drawn_steps(request: Request) -> int:
    job: Job = request.payload  # type: ignore[assignment]  # set by `Call.submit`
    return job.params.num_inference_steps
