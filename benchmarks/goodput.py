"""What do due time, slack and admission buy, against first come, first served?

A server that takes whoever comes in turn answers everybody late once it is overloaded: the queue
grows, and each waits for it. One that knows what work costs can refuse at the door what it could
not do in time, and do first what is due first. Goodput counts the requests that were answered
before their deadline, for each second in which requests arrived.

Two classes of deadline, half and half, for pictures of one size: *short* (6 steps, three times
the time that it takes alone) and *long* (30 steps, six times). Poisson arrivals at shares of the
capacity, which is what the engine does with a full queue. All contenders are this engine on the
fake device (times of about an H100 at 1024², where a batch buys little), with a cost table that
has learnt from the warm-up alone, and a queue of 64.

    first come    turns by arrival, no deadlines known; what a plain queue with batching does
    least slack   deadline - now - work left decides, late ones included; nobody is refused
    ledger        this engine: due time, a ledger of promises, admission by it

    python -m benchmarks.goodput [--requests N] [--seeds N] [--json PATH]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import aim, machine, number, show, show_aims
from benchmarks.stats import Outcome, attainment, goodput, poisson_arrivals
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.fake import FakeClock, FakeExecutor
from sdxl_bento.engine.request import Phase, Request, Stage, Unit
from sdxl_bento.engine.scheduler import Limits, Scheduler
from sdxl_bento.errors import Refused

LOADS = (0.5, 0.8, 1.1)
CLASSES = {"short": (6, 3.0), "long": (30, 6.0)}  # steps, deadline in times of the work alone
SIDE = 1024
AIM = 1.3


class LeastSlack(Scheduler):
    """The textbook rule, with nothing around it."""

    def next(self, now: float, busy: float, ready: Callable[[Request], bool]) -> Unit | None:
        self._start_waiting(now)
        able = [r for r in self.running.values() if not r.launched_all and ready(r)]
        if not able:
            return None
        able.sort(key=lambda r: (r.deadline or 0.0) - now - self.cost.remaining(r))
        lead, rows, batch = able[0], 0, []
        for request in able:
            if request.key == lead.key and rows + request.rows <= self.row_limit(lead.key):
                rows += request.rows
                batch.append(request)
        return Unit(lead.key, tuple(batch), tuple(request.step for request in batch))


class World:
    """One contender on a fake device, warmed up."""

    def __init__(self, contender: str) -> None:
        self.contender = contender
        self.clock = FakeClock()
        # Patience of nothing: turns go by arrival.
        limits = Limits(max_running=16, ageing_s=1e-9 if contender == "first come" else 30.0)
        self.engine = Engine(FakeExecutor(self.clock), limits, clock=self.clock)
        if contender == "least slack":
            self.engine.scheduler = LeastSlack(self.engine.cost, limits)
            self.engine.admission.scheduler = self.engine.scheduler
            self.engine.admission.lateness = lambda *_: 0.0  # type: ignore[method-assign]
        for count in (1, 2, 4, 8):
            for index in range(count):
                self.engine.submit(picture(f"warm-up {count} {index}", 4))
            self.drain()

    def drain(self) -> None:
        while self.engine.step():
            pass

    def alone(self, steps: int) -> float:
        """Seconds that a picture takes by itself."""
        return self.engine.cost.remaining(picture("alone", steps))

    def run(self, arrivals: list[float], rng: random.Random) -> list[Outcome]:
        """Serve an open loop."""
        outcomes: list[Outcome] = []
        begin = self.clock.now
        coming = [(begin + at, rng.choice(list(CLASSES))) for at in arrivals]
        for index, (at, kind) in enumerate(coming):
            while self.clock.now < at and self.engine.step():
                pass
            self.clock.wait_until(at)
            self._submit(f"{index}", at, kind, outcomes)
        self.drain()
        return outcomes

    def _submit(self, id_: str, at: float, kind: str, outcomes: list[Outcome]) -> None:
        steps, times = CLASSES[kind]
        allowed = times * self.alone(steps)
        request = picture(id_, steps)
        request.deadline = None if self.contender == "first come" else at + allowed
        request.on_end = lambda r: outcomes.append(Outcome(kind, allowed, self.clock() - at, 200))
        try:
            self.engine.submit(request)
        except Refused:
            outcomes.append(Outcome(kind, allowed, None, 503))


def picture(id_: str, steps: int) -> Request:
    phases = (Phase(Stage.ENCODE, 1, 2), Phase(Stage.BASE, steps, 2), Phase(Stage.DECODE, 1, 1))
    return Request(id_, "sdxl", SIDE, SIDE, phases)


def capacity(requests: int = 64) -> float:
    """Requests a second with a full queue."""
    world = World("first come")
    begin = world.clock.now
    for index in range(requests):
        steps, _ = list(CLASSES.values())[index % len(CLASSES)]
        world.engine.submit(picture(f"{index}", steps))
    world.drain()
    return requests / (world.clock.now - begin)


def measure(contender: str, load: float, most: float, requests: int, seeds: int) -> dict[str, Any]:
    goodputs, attained, refused, late = [], [], [], []
    for seed in range(seeds):
        arrivals = poisson_arrivals(random.Random(seed), requests, load * most)
        outcomes = World(contender).run(arrivals, random.Random(1000 + seed))
        answered = [outcome for outcome in outcomes if outcome.seconds is not None]
        goodputs.append(goodput(outcomes, arrivals[-1]))
        attained.append(attainment(outcomes))
        refused.append(1 - len(answered) / len(outcomes))
        late.append(sum(not outcome.on_time for outcome in answered) / len(outcomes))
    names = ("goodput_per_s", "attainment", "refused", "late")
    medians = map(statistics.median, (goodputs, attained, refused, late))
    return {"contender": contender, "load": load, **dict(zip(names, medians, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the document here, too")
    args = parser.parse_args()
    console, most = Console(), capacity()
    results = [
        measure(contender, load, most, args.requests, args.seeds)
        for load in LOADS
        for contender in ("first come", "least slack", "ledger")
    ]
    columns = ("load", "goodput_per_s", "attainment", "refused", "late")
    rows = [(r["contender"], *(number(r[column]) for column in columns)) for r in results]
    title = f"Goodput; capacity {most:.2f} requests a second"
    show(console, title, ("", "load", "goodput /s", "on time", "refused", "late"), rows)
    at_most = {r["contender"]: r["goodput_per_s"] for r in results if r["load"] == LOADS[-1]}
    ratio = at_most["ledger"] / at_most["first come"]
    aims = [aim("goodput at 1.1 load, of first come first served", ratio, AIM, at_least=True)]
    show_aims(console, aims)
    document = {
        "benchmark": "goodput",
        **machine(),
        "capacity_per_s": most,
        "results": results,
        "aims": aims,
    }
    line = json.dumps(document)
    if args.json:
        args.json.write_text(line + "\n", "utf-8")
    print(line)


if __name__ == "__main__":
    main()
