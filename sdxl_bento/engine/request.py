"""What the engine knows of one picture: its way through the stages, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """The kinds of work. Requests in the same stage of the same model can share a batch."""

    ENCODE = "encode"  # prompts -> embeddings
    IMAGE = "image"  # given picture -> latents
    BASE = "base"  # denoise with the base UNet
    REFINE = "refine"  # denoise with the refiner UNet
    DECODE = "decode"  # latents -> picture

    @property
    def denoises(self) -> bool:
        return self in (Stage.BASE, Stage.REFINE)


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What two rows must have in common to share a forward. Size in pixels."""

    model: str
    stage: Stage
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of one request's way: `steps` units of work of `rows` rows each."""

    stage: Stage
    steps: int
    rows: int


@dataclass(eq=False, slots=True)
class Request:
    """One picture on its way. Times are seconds of the engine's clock.

    `payload` is the data plane's business. `phase` and `step` count what has been launched,
    `in_flight` what has been launched and has not yet completed.
    """

    id: str
    model: str
    height: int
    width: int
    phases: tuple[Phase, ...]
    payload: object = None
    arrival: float = 0.0
    deadline: float | None = None
    priority: int = 0

    status: Status = Status.WAITING
    phase: int = 0
    step: int = 0
    in_flight: int = 0
    alone: bool = False  # a batch with it has failed: run it by itself until it succeeds
    cancelling: bool = False
    started: float | None = None
    ended: float | None = None
    result: object = None
    error: BaseException | None = None
    stage_s: dict[Stage, float] = field(default_factory=dict)
    on_progress: Callable[[Request, Stage, int, object], None] | None = None
    on_end: Callable[[Request], None] | None = None
    costs: tuple[int, float, float] | None = None  # cache of `cost.CostTable.remaining`

    @property
    def keys(self) -> list[BatchKey]:
        return [self.key_of(phase) for phase in self.phases]

    def key_of(self, phase: Phase) -> BatchKey:
        sized = phase.stage is not Stage.ENCODE
        return BatchKey(
            self.model, phase.stage, self.height if sized else 0, self.width if sized else 0
        )

    @property
    def key(self) -> BatchKey:
        return self.key_of(self.phases[self.phase])

    @property
    def rows(self) -> int:
        return self.phases[self.phase].rows

    @property
    def stage(self) -> Stage:
        return self.phases[self.phase].stage

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def launched_all(self) -> bool:
        return self.phase == len(self.phases)

    @property
    def has_ended(self) -> bool:
        return self.status in (Status.FINISHED, Status.FAILED, Status.CANCELLED)

    def advance(self) -> None:
        """One unit of it was launched."""
        self.in_flight += 1
        self.step += 1
        if self.step == self.phases[self.phase].steps:
            self.phase, self.step, self.costs = self.phase + 1, 0, None


@dataclass(frozen=True, slots=True)
class Unit:
    """One forward: one batch of one stage. `steps[i]` is the step that `requests[i]` makes."""

    key: BatchKey
    requests: tuple[Request, ...]
    steps: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(request.rows for request in self.requests)
