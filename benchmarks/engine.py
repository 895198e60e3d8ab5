"""What does it buy to form the batch anew at every step, instead of once for each request?

Three servers over the same weights (the embedded model), in float32 with two torch threads each:

(a) plain: diffusers' pipeline in a Starlette handler, one request at a time
(b) whole: diffusers' pipeline under BentoML's adaptive batching; a batch runs to its end
(c) ours:  `bentoml serve .` of this repository; the batch is formed anew at every step

The physics. A forward of R rows costs `fixed + R * per_row`, and sharing it saves the fixed part:
starting the operators, reading the weights. That is large on a GPU with small pictures, and for
the embedded model, whose operators are tiny, on a CPU too; for a large model on a CPU it is next
to nothing. How much there is to gain here at most is measured beside it, with the UNet alone
(`contenders/forward.py`).

What re-forming changes on any device is waiting. A request that comes to (a) waits for everyone
before it, one that comes to (b) for the longest of the batch that runs, one that comes to (c) for
two steps. And because the scheduler chooses at every step, it can serve who is most urgent, and
refuse at the door what it could only have answered too late.

    throughput  1, 4 and 16 clients, each asking again when it has its picture
    late        a request of 4 steps comes while eight of 50 steps run
    traffic     Poisson arrivals at 0.5, 0.8 and 1.1 of the plain server's capacity, two classes
                with deadlines of five times what each takes on an idle plain server. Goodput counts
                the answers on time. Only `ours, told the deadlines` knows of them. At 1.1 of our
                own capacity it meets our engine with its scheduling taken out, too
    adapters    eight requests with eight different LoRAs in one batch, against eight with none

Each contender is a fresh process; all are up during the whole run, and take turns. The run is
bounded by counts, so a slow machine takes longer, and by `--limit` minutes in the whole.

    python -m benchmarks.engine [--quick] [--json PATH]     then: python -m benchmarks.plots PATH

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import scenarios
from benchmarks.adapters import write_variants
from benchmarks.contenders.servers import ROOT, Server, serve_all
from benchmarks.load import Client
from benchmarks.report import aim, machine, number, show, show_aims
from benchmarks.scenarios import FULL, IN_ORDER, QUICK, WITH_DEADLINES, Scale

Results = dict[str, Any]
PARTS = ("throughput", "late", "adapters", "traffic")


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the contenders
    console = Console(stderr=True, highlight=False)
    begin = time.monotonic()
    document: Results = {"benchmark": "engine", "quick": options.quick, **machine()}
    document["threads"] = options.threads
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="sdxl-bento-bench-") as scratch:
        folder = Path(scratch)
        # A model store of its own, which the contenders inherit.
        os.environ["BENTOML_HOME"] = str(folder / "bentoml")
        tag = _export()
        names = write_variants(tag, folder / "loras", 8)
        document["forward"] = _forward(tag, 1 if options.quick else 9, options.threads)
        with serve_all(tag, folder / "loras", folder, options.threads) as servers:
            console.print(f"{time.monotonic() - begin:4.0f} s  all contenders are up")
            work = _measure(servers, scale, names, console, begin, options.only)
            document |= asyncio.run(asyncio.wait_for(work, options.limit * 60))
    document["seconds"] = round(time.monotonic() - begin, 1)
    if set(options.only) == set(PARTS):
        document["aims"] = aims(document)
        tell(Console(highlight=False, width=100), document)
    line = json.dumps(_rounded(document))
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


async def _measure(
    servers: Mapping[str, Server],
    scale: Scale,
    names: list[str],
    console: Console,
    begin: float,
    only: Sequence[str],
) -> Results:
    def say(what: str) -> None:
        console.print(f"{time.monotonic() - begin:4.0f} s  {what}")

    clients = {name: Client(server) for name, server in servers.items()}
    try:
        await scenarios.warm_up(clients)
        say("warm")
        three = {name: clients[name] for name in ("plain", "whole", "ours")}
        found: Results = {}
        if "throughput" in only:
            found["throughput"] = await scenarios.throughput(three, scale, say)
        if "late" in only:
            found["late"] = await scenarios.late_short_request(three, scale, say)
        if "adapters" in only:
            found["adapters"] = await scenarios.mixed_adapters(clients["ours"], scale, names, say)
        if "traffic" in only:
            found["traffic"] = await scenarios.traffic(clients, scale, say)
        return found
    finally:
        for client in clients.values():
            await client.close()


def aims(document: Mapping[str, Any]) -> list[Results]:
    """What we set out to reach, and what was measured."""
    ratios = document["throughput"]["ratio_to_plain"]["ours"]
    loads = document["traffic"]["loads"]
    first, own = loads["1.1"], loads["1.1 of our own"]

    def gain(of: Mapping[str, Any], over: str) -> float | None:
        base: float = of[over]["goodput_per_s"]
        return float(of[WITH_DEADLINES]["goodput_per_s"]) / base if base else None

    return [
        *(
            aim(f"throughput against (a), {clients} clients", ratio, 1.0, at_least=True)
            for clients, ratio in ratios.items()
        ),
        aim(
            "late short request against (b)", document["late"]["ours_to_whole"], 0.2, at_least=False
        ),
        aim("goodput at 1.1 against (a)", gain(first, "plain"), 1.3, at_least=True),
        aim("goodput at 1.1 of our own against FCFS", gain(own, IN_ORDER), 1.3, at_least=True),
        aim("eight LoRAs against none", document["adapters"]["ratio"], 1.25, at_least=False),
    ]


def tell(console: Console, document: Mapping[str, Any]) -> None:
    """The tables."""
    rates = document["throughput"]
    rows = [
        (name, *(f"{r:.2f}  ×{rates['ratio_to_plain'][name][c]:.2f}" for c, r in of.items()))
        for name, of in rates["images_per_s"].items()
    ]
    clients = [f"{c} clients" for c in rates["images_per_s"]["plain"]]
    show(console, "Pictures a second, and as a ratio to (a)", ("", *clients), rows)
    ms = document["forward"]["ms"]
    least, most = min(ms, key=int), max(ms, key=int)
    bound = (ms[least] / int(least)) / (ms[most] / int(most))
    console.print(
        f"The UNet alone: {', '.join(f'{r} rows {t:g} ms' for r, t in ms.items())}; "
        f"sharing forwards can raise its throughput ×{bound:.2f} at most here.\n"
    )
    late = document["late"]
    rows = [
        (name, number(s, " s"), f"×{late['ratio_to_plain'][name]:.2f}")
        for name, s in late["seconds"].items()
    ]
    show(console, "A late, short request", ("", "latency", "to (a)"), rows)
    for load, found in document["traffic"]["loads"].items():
        header = (f"load {load}", "p50", "p99", "on time", "goodput", "answers")
        rows = [(name, *_traffic_row(of)) for name, of in found.items()]
        show(console, "Poisson arrivals", header, rows)
    adapters = document["adapters"]["seconds"]
    rows = [("none", number(adapters["none"], " s")), ("eight", number(adapters["eight"], " s"))]
    show(console, "Eight requests, LoRAs in the batch", ("", "until the last"), rows)
    show_aims(console, document["aims"])


def _traffic_row(of: Mapping[str, Any]) -> tuple[str, ...]:
    answers = ", ".join(f"{n} × {status}" for status, n in of["answers"].items())
    percentiles = (number(of["p50_s"], " s"), number(of["p99_s"], " s"))
    return (*percentiles, f"{of['attainment']:.0%}", f"{of['goodput_per_s']:.2f} /s", answers)


def _export() -> str:
    command = [sys.executable, "-m", "export", "embedded"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the export failed:\n{done.stderr}")
    return done.stdout.strip()


def _forward(tag: str, rounds: int, threads: int) -> Results:
    command = [sys.executable, "-m", "benchmarks.contenders.forward", tag, str(rounds)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.PIPE)
    found: Results = json.loads(done.stdout.splitlines()[-1])
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(of) for key, of in value.items()}
    return [_rounded(of) for of in value] if isinstance(value, list) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only show that the benchmark works")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="JSON of these parts, no tables"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON document there")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for every contender")
    parser.add_argument("--limit", type=float, default=30, help="minutes, then it gives up")
    return parser.parse_args()


if __name__ == "__main__":
    main()
