"""The engine's record of one picture: its stages, its progress, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Stage(StrEnum):
    """The kinds of work. Requests in the same stage of the same model can share a batch."""

    ENCODE = "encode"  # prompts -> embeddings
    IMAGE = "image"  # the picture to start from -> latents
    BASE = "base"  # denoise with the base UNet
    REFINE = "refine"  # denoise with the refiner UNet
    DECODE = "decode"  # latents -> picture

    __hash__ = str.__hash__  # enum's own is Python, and stages are part of every key looked up

    @property
    def denoises(self) -> bool:
        return self in DENOISING


DENOISING = frozenset((Stage.BASE, Stage.REFINE))


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BatchKey(NamedTuple):
    """What two rows must have in common to share a forward. Size in pixels."""

    model: str
    stage: Stage
    height: int
    width: int


class Phase(NamedTuple):
    """A stretch of one request's way: `steps` units of work of `rows` rows each."""

    stage: Stage
    steps: int
    rows: int


class Cost(NamedTuple):
    """What a phase costs without company: `seconds` a unit, `later` for all phases after it."""

    seconds: float
    later: float


@dataclass(eq=False, slots=True)
class Request:
    """One picture on its way. Times are seconds of the engine's clock.

    `payload` is the data plane's business. `phase` and `step` count what has been launched,
    `in_flight` what has been launched and has not yet completed. A request that ends while a
    unit of it is in flight keeps counting down; nothing else of that unit reaches it.
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
    keys: tuple[BatchKey, ...] = field(init=False)  # one for each phase
    turn: float = 0.0  # when it is due while no deadline binds it; set by the scheduler
    costs: tuple[int, tuple[Cost, ...]] | None = None  # cache of `cost.CostTable.costs`

    def __post_init__(self) -> None:
        self.plan(self.phases, self.payload)

    def plan(self, phases: tuple[Phase, ...], payload: object) -> None:
        """Set the way it will go. Only before it has started."""
        self.phases, self.payload, self.costs = phases, payload, None
        self.keys = tuple(self._key_of(phase) for phase in phases)

    @property
    def key(self) -> BatchKey:
        return self.keys[self.phase]

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
            self.phase, self.step = self.phase + 1, 0

    def _key_of(self, phase: Phase) -> BatchKey:
        if phase.stage is Stage.ENCODE:  # a prompt has no size
            return BatchKey(self.model, phase.stage, 0, 0)
        return BatchKey(self.model, phase.stage, self.height, self.width)


@dataclass(frozen=True, slots=True)
class Unit:
    """One forward: one batch of one stage. `steps[i]` is the step that `requests[i]` makes."""

    key: BatchKey
    requests: tuple[Request, ...]
    steps: tuple[int, ...]
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        # Counted now: the requests will have moved on when somebody asks.
        object.__setattr__(self, "rows", sum(request.rows for request in self.requests))


@dataclass(frozen=True, slots=True)
class Fewer:
    """Leave to run a request with fewer steps than `asked`, though not under `floor`.

    `plan(n)` gives the phases and the payload for `n` steps, in the caller's way of counting.
    """

    asked: int
    floor: int
    plan: Callable[[int], tuple[tuple[Phase, ...], object]]
