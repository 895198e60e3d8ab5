"""What do hostile and careless callers get, and how much do they slow a well-behaved one?

A real server with the default settings, a well-behaved client that draws one picture after the
other, and for each kind of abuse a process of attackers beside it (of the lowest priority, since
they share the machine's cores with the server). Counted are the tries and those in which the server
did what it promises; the effect is the median latency of the well-behaved client during the abuse,
as a ratio of its latency alone just before. Kinds that make the server draw share the device by
right, so their effect is shown but has no aim. After each kind the server must be ready, its queue
empty, and nothing that a caller wrote in its log.

    python -m benchmarks abuse [--kinds numbers,bombs] [--seconds 15] [--url http://127.0.0.1:3000]

It takes about 40 seconds for each of its kinds. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks.attacks import ATTACKS, Attack, Site
from benchmarks.attacks.attack import Result, run
from benchmarks.attacks.connections import after_leaving
from benchmarks.attacks.promises import PLAIN, pixels
from benchmarks.contenders.servers import Contender, free_ports, serve
from benchmarks.report import aim, machine, number, show, show_aims

MOST = 1.5  # times the latency alone
ALONE = 20  # requests
WORDS = b"zyzzogeton"  # in the prompt of the well-behaved client; never in the log


@dataclass
class Row:
    """What became of one kind."""

    name: str
    tried: int
    held: int
    effect: float | None
    worst_effect: float | None
    surprises: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", default=",".join(ATTACKS), help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="sdxl-embedded:latest", help="its tag in the store")
    parser.add_argument("--url", help="a server that runs already, instead of one of its own")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        os.nice(19)
        print(json.dumps(asdict(asyncio.run(_attack(options)))))
        return
    if unknown := set(options.kinds.split(",")) - ATTACKS.keys():
        parser.error(f"no such kind: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    with _server(options) as (url, log):
        rows = asyncio.run(_measure(options, url, log))
    _report(rows)


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[str, Path | None]]:
    if options.url:
        yield options.url, None
        return
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port))
    env = os.environ | {"SDXL_MODEL": options.model, "BENTOML_DO_NOT_TRACK": "True"}
    ours = Contender("ours", "ours", (*command, "."))
    with (
        tempfile.TemporaryDirectory(prefix="sdxl-bento-bench-") as logs,
        serve(ours, port, env, Path(logs)) as server,
    ):
        yield server.url, server.log


def _site(url: str, http: httpx.AsyncClient) -> Site:
    models = httpx.get(f"{url}/models").json()["models"]
    site = Site(url, models[0]["name"], http)
    site.memory["loras"] = [each["name"] for each in httpx.get(f"{url}/loras").json()["loras"]]
    return site


async def _attack(options: argparse.Namespace) -> Result:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.url, limits=limits, timeout=120) as http:
        site = _site(options.url, http)
        alone = await http.post("/generate", json=PLAIN | {"seed": 11})
        site.memory["alone"] = pixels(alone.content)
        return await run(ATTACKS[options.attack], site, options.seconds, options.seed)


async def _measure(options: argparse.Namespace, url: str, log: Path | None) -> list[Row]:
    rows = []
    # The attackers share an address, and lose what one address may not have; this one is another's.
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2") if log else None
    async with httpx.AsyncClient(base_url=url, timeout=120, transport=transport) as http:
        site = _site(url, http)
        for name in options.kinds.split(","):
            rows.append(await _one(ATTACKS[name], options, site))
            print(f"{name}: held {rows[-1].held} of {rows[-1].tried}", file=sys.stderr)
    if log is not None:
        rows.append(_log_row(log))
    return rows


def _log_row(log: Path) -> Row:
    text = log.read_bytes()
    leaks, traces = text.count(WORDS), text.count(b"Traceback")
    row = Row("log", 2, 2 - bool(leaks) - bool(traces), None, None, [])
    if row.held < row.tried:
        row.surprises.append(f"{leaks} prompts and {traces} traces in the log")
    return row


async def _one(attack: Attack, options: argparse.Namespace, site: Site) -> Row:
    alone = [await _draw(site) for _ in range(ALONE)]
    command = [sys.executable, "-m", "benchmarks.abuse", "--attack", attack.name, "--url", site.url]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    reading = asyncio.create_task(process.communicate())
    beside = []
    while not reading.done():
        beside.append(await _draw(site))
    output, _ = await reading
    result = Result(**json.loads(output.splitlines()[-1]))
    surprises = list(result.surprises)
    if surprise := await after_leaving(site):
        surprises.append(surprise)
    if (ready := (await site.http.get("/readyz")).status_code) != 200:
        surprises.append(f"/readyz answers {ready} afterwards")
    before = statistics.median(alone)
    effect, worst = statistics.median(beside) / before, max(beside) / before
    held = result.held if len(surprises) == len(result.surprises) else 0
    return Row(attack.name, result.tried, held, effect, worst, surprises)


async def _draw(site: Site) -> float:
    """Draw a picture as a well-behaved client does; seconds. Being refused counts as its time."""
    body: dict[str, Any] = PLAIN | {"prompt": f"{PLAIN['prompt']} {WORDS.decode()}", "seed": 5}
    begin = time.perf_counter()
    for _ in range(600):
        response = await site.http.post("/generate", json=body)
        if response.status_code == 200:
            break
        await asyncio.sleep(0.05)
    return time.perf_counter() - begin


def _report(rows: list[Row]) -> None:
    console = Console(highlight=False, width=110)
    titles = {name: attack.title for name, attack in ATTACKS.items()} | {"log": "clean log"}
    table = [
        (titles[r.name], str(r.tried), str(r.held), number(r.effect), number(r.worst_effect))
        for r in rows
    ]
    header = ("kind", "tried", "held", "effect on a neighbour", "its slowest picture")
    show(console, "Abuse", header, table)
    for row in rows:
        for surprise in row.surprises[:5]:
            console.print(f"  {row.name}: {surprise}", style="red", markup=False)
    tried, held = sum(r.tried for r in rows), sum(r.held for r in rows)
    effects = [r.effect for r in rows if r.effect and not ATTACKS[r.name].draws]
    aims = [
        aim("share of the tries that held", held / tried if tried else None, 1.0, at_least=True),
        aim("effect on a neighbour", max(effects, default=None), MOST, at_least=False),
    ]
    show_aims(console, aims)
    found = [asdict(row) for row in rows]
    print(json.dumps({"benchmark": "abuse", **machine(), "rows": found, "aims": aims}))
    if held < tried:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
