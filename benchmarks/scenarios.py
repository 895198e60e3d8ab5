"""What is asked of the contenders. Each returns plain numbers for the JSON document.

Rounds go around the contenders, so that a machine that is busy with something else for a while
hits all of them; a figure is the median of its rounds, and ratios are of medians.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from benchmarks.load import Arrival, Ask, Client, closed_loop, open_loop
from benchmarks.stats import Outcome, attainment, goodput, percentile, poisson_arrivals

Clients = Mapping[str, Client]
Say = Callable[[str], None]
numbers = count(1)


@dataclass(frozen=True)
class Scale:
    """How much of everything: the full run, or a smoke test of the benchmark itself."""

    rounds: int = 3
    steps: int = 25
    requests: tuple[tuple[int, int], ...] = ((1, 4), (4, 8), (16, 32))  # clients, pictures
    long_steps: int = 50
    late_steps: int = 4
    mix: tuple[tuple[str, float, int], ...] = (("interactive", 0.7, 6), ("quality", 0.3, 25))
    arrivals: int = 60  # at load 1; other loads take the same time
    lora_steps: int = 25
    lora_rounds: int = 3


FULL = Scale()
QUICK = Scale(
    rounds=1,
    steps=2,
    requests=((1, 1), (4, 4), (16, 16)),
    long_steps=6,
    late_steps=1,
    mix=(("interactive", 0.7, 1), ("quality", 0.3, 4)),
    arrivals=8,
    lora_steps=2,
    lora_rounds=1,
)
LOADS = (0.5, 0.8, 1.1)
DEADLINE = 5.0  # times what the class takes on an idle plain server
WITH_DEADLINES = "ours, told the deadlines"
IN_ORDER = "ours, first come first served"
OURS = {"ours": ("ours", False), WITH_DEADLINES: ("ours", True)}  # server, whether it is told
EVERYONE = {"plain": ("plain", False), "whole": ("whole", False), **OURS}
OUR_OWN = {IN_ORDER: ("fcfs", False), **OURS}


def ask(steps: int, lora: str | None = None) -> Ask:
    return Ask(next(numbers), steps, lora=lora)


async def warm_up(clients: Clients) -> None:
    """First requests are slow everywhere, and batches allocate their memory once."""
    for client in clients.values():
        await client.draw_all([ask(1)])
        await client.draw_all([ask(2) for _ in range(16)])


async def throughput(clients: Clients, scale: Scale, say: Say) -> dict[str, Any]:
    """Pictures a second from 1, 4 and 16 clients that each wait for their picture."""
    rates: dict[str, dict[int, list[float]]] = {name: {} for name in clients}
    for turn in range(scale.rounds):
        for concurrent, pictures in scale.requests:
            for name, client in clients.items():
                asks = [ask(scale.steps) for _ in range(pictures)]
                rate = await closed_loop(client, concurrent, asks)
                rates[name].setdefault(concurrent, []).append(rate)
                say(f"throughput {turn + 1}/{scale.rounds}: {concurrent} clients, {name}")
    medians = {
        name: {str(c): statistics.median(of) for c, of in found.items()}
        for name, found in rates.items()
    }
    ratios = {
        name: {c: rate / medians["plain"][c] for c, rate in found.items()}
        for name, found in medians.items()
    }
    return {"images_per_s": medians, "ratio_to_plain": ratios, "rounds": _listed(rates)}


async def late_short_request(clients: Clients, scale: Scale, say: Say) -> dict[str, Any]:
    """A short request that comes while eight long ones are at work: how long does it take?"""
    waits: dict[str, list[float]] = {name: [] for name in clients}
    alone = await clients["plain"].draw_all([ask(scale.long_steps)])
    for turn in range(scale.rounds):
        for name, client in clients.items():
            async with asyncio.TaskGroup() as group:
                group.create_task(client.draw_all([ask(scale.long_steps) for _ in range(8)]))
                await asyncio.sleep(alone)  # about an eighth of their time
                waits[name].append(await client.draw_all([ask(scale.late_steps)]))
            say(f"late request {turn + 1}/{scale.rounds}: {name}")
    medians = {name: statistics.median(of) for name, of in waits.items()}
    return {
        "seconds": medians,
        "ratio_to_plain": {name: s / medians["plain"] for name, s in medians.items()},
        "ours_to_whole": medians["ours"] / medians["whole"],
        "rounds": waits,
    }


async def traffic(clients: Clients, scale: Scale, say: Say) -> dict[str, Any]:
    """A Poisson open loop of two classes of requests, the same trace for every contender.

    Load 1 is the rate at which the plain server, never idle, could just keep up. The last load is
    in units of our own capacity: there, nothing but scheduling tells our variants apart.
    """
    loads = [(f"{load:g}", load, EVERYONE) for load in LOADS]
    loads.append((f"{LOADS[-1]:g} of our own", LOADS[-1], OUR_OWN))
    results: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for label, load, variants in loads:
        # Anew for each load, as what else the machine does may have changed.
        alone = await _alone(clients["plain"], scale)
        capacity = 1 / sum(share * alone[kind] for kind, share, _ in scale.mix)
        unit = capacity if variants is EVERYONE else await _own_capacity(clients["ours"], scale)
        length = 1 if variants is EVERYONE else 2  # a queue needs time to build up
        count = max(round(scale.arrivals * length * load * unit / capacity), 1)
        trace = _trace(random.Random(2), scale, count, load * unit, alone)
        deadlines = {kind: DEADLINE * seconds for kind, seconds in alone.items()}
        measured[label] = {"capacity_per_s": unit, "deadlines_s": deadlines}
        results[label] = {}
        for variant, (name, tell) in variants.items():
            outcomes = await open_loop(clients[name], trace, tell_deadline=tell)
            results[label][variant] = _summary(outcomes, trace[-1].at)
            say(f"traffic at load {label}: {variant}")
    mix = {kind: {"share": share, "steps": steps} for kind, share, steps in scale.mix}
    return {"mix": mix, "measured_before": measured, "loads": results}


async def mixed_adapters(
    client: Client, scale: Scale, adapters: Sequence[str], say: Say
) -> dict[str, Any]:
    """Eight requests in one batch: each with its own LoRA, against none."""
    seconds: dict[str, list[float]] = {"none": [], "eight": []}
    for turn in range(scale.lora_rounds + 1):
        none = await client.draw_all([ask(scale.lora_steps) for _ in adapters])
        eight = await client.draw_all([ask(scale.lora_steps, name) for name in adapters])
        if turn:  # the first loads the adapters
            seconds["none"].append(none)
            seconds["eight"].append(eight)
            say(f"adapters {turn}/{scale.lora_rounds}")
    ratios = [b / a for a, b in zip(seconds["none"], seconds["eight"], strict=True)]
    return {
        "seconds": {name: statistics.median(of) for name, of in seconds.items()},
        "ratio": statistics.median(ratios),
        "rounds": seconds,
    }


async def _own_capacity(client: Client, scale: Scale) -> float:
    """Pictures a second of the mix from 16 clients, enough that the end weighs little."""
    rng = random.Random(1)
    mixed = [_drawn(rng, scale)[1] for _ in range(scale.arrivals + 8)]
    return await closed_loop(client, 16, [ask(steps) for steps in mixed])


async def _alone(client: Client, scale: Scale) -> dict[str, float]:
    """Seconds of a request of each class on an idle server."""
    seconds: dict[str, list[float]] = {kind: [] for kind, _, _ in scale.mix}
    for _ in range(scale.rounds + 1):
        for kind, _, steps in scale.mix:
            seconds[kind].append(await client.draw_all([ask(steps)]))
    return {kind: statistics.median(of) for kind, of in seconds.items()}


def _drawn(rng: random.Random, scale: Scale) -> tuple[str, int]:
    [(kind, _, steps)] = rng.choices(scale.mix, [share for _, share, _ in scale.mix])
    return kind, steps


def _trace(
    rng: random.Random, scale: Scale, count: int, rate: float, alone: Mapping[str, float]
) -> list[Arrival]:
    trace = []
    for at in poisson_arrivals(rng, count, rate):
        kind, steps = _drawn(rng, scale)
        trace.append(Arrival(at, kind, ask(steps), DEADLINE * alone[kind]))
    return trace


def _summary(outcomes: Sequence[Outcome], window_s: float) -> dict[str, Any]:
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    kinds = {outcome.kind: None for outcome in outcomes}
    return {
        "p50_s": percentile(seconds, 0.5) if seconds else None,
        "p99_s": percentile(seconds, 0.99) if seconds else None,
        "attainment": attainment(outcomes),
        "attainment_by_class": {
            kind: attainment([o for o in outcomes if o.kind == kind]) for kind in kinds
        },
        "goodput_per_s": goodput(outcomes, window_s),
        "requests": len(outcomes),
        "window_s": window_s,
        "answers": {str(status): n for status, n in Counter(o.status for o in outcomes).items()},
    }


def _listed(rates: Mapping[str, Mapping[int, list[float]]]) -> dict[str, dict[str, list[float]]]:
    return {name: {str(c): of for c, of in found.items()} for name, found in rates.items()}
