"""`sdxl-bento bench`: throughput and latency of a server, or of this machine."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdxl_bento.cli import options
from sdxl_bento.cli.failures import ExitCode
from sdxl_bento.cli.fields import Fields, numbers
from sdxl_bento.cli.terminal import emit_json, emit_table, reporting, say, stderr

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.cli.drawer import Drawer
    from sdxl_bento.cli.load import Level

Clients = Annotated[
    str, typer.Option(help="Clients at once; several numbers are run one after the other.")
]
Requests = Annotated[int, typer.Option(min=1, help="Pictures for each number of clients.")]
Seconds = Annotated[
    float, typer.Option(min=0.1, help="Longest time for each number of clients, in seconds.")
]
WarmUp = Annotated[int, typer.Option(min=0, help="Pictures beforehand that do not count.")]
BenchPrompt = Annotated[str, typer.Option(help="What to draw; the seeds differ.")]


# The fields that change how long a picture takes, or whether it is drawn at all.
_FIELDS = (
    *("model", "width", "height", "num_inference_steps", "guidance_scale", "sampler"),
    *("loras", "refiner", "slo_ms"),
)


@options.sets_fields(_FIELDS)
def bench(
    fields: Fields,
    *,
    clients: Clients = "1,4,16",
    requests: Requests = 32,
    seconds: Seconds = 300.0,
    warm_up: WarmUp = 2,
    prompt: BenchPrompt = "a red circle on a blue background",
    url: options.Url = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure throughput and latency under a bounded load.

    Each client asks for its next picture when it has the last. On the server that --url or
    SDXL_URL names; without one, the model is loaded here. Ctrl-C prints what there is so far.
    """
    levels = _levels(clients)
    fields["prompt"] = prompt
    with reporting(as_json):
        try:
            asyncio.run(_bench(url, fields, levels, requests, seconds, warm_up, verbose))
        finally:  # also after an interruption, with the figures so far
            _report([level for level in levels if level.asked], fields, as_json)
    if not any(level.latencies for level in levels):
        say("Error: not one picture was drawn.")
        raise typer.Exit(ExitCode.FAILED)


def _levels(clients: str) -> list[Level]:
    from sdxl_bento.cli.load import Level

    return [Level(number) for number in numbers(clients, "--clients")]


async def _bench(
    url_option: str | None,
    fields: Fields,
    levels: list[Level],
    requests: int,
    seconds: float,
    warm_up: int,
    verbose: bool,
) -> None:
    from sdxl_bento.cli.connect import connect, server_url

    console = stderr()
    url, model = server_url(url_option), fields.get("model")
    name = str(model) if model is not None else None
    async with connect(url, name, console, warm=True, verbose=verbose) as drawer:
        seeds = _Seeds()
        for _ in range(warm_up):  # an error of the call itself ends the command here
            await drawer.draw(fields | {"seed": seeds.next()})
        for level in levels:
            await _run(drawer, fields, level, requests, seconds, seeds, console)


class _Seeds:
    """Seeds that no run has used before, because a server may answer from its cache."""

    def __init__(self) -> None:
        self._next = secrets.randbits(48)

    def next(self) -> int:
        self._next += 1
        return self._next


async def _run(
    drawer: Drawer,
    fields: Fields,
    level: Level,
    requests: int,
    seconds: float,
    seeds: _Seeds,
    console: Console,
) -> None:
    from rich.progress import Progress

    from sdxl_bento.cli.load import closed_loop

    async def draw(_: int) -> float:
        result = await drawer.draw(fields | {"seed": seeds.next()})
        return float(result.answer["timings"]["queue_ms"]) / 1e3

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        text = f"{level.clients} client{'s' if level.clients > 1 else ''}"
        task = bars.add_task(text, total=requests)
        await closed_loop(draw, level, requests, seconds, lambda: bars.advance(task))


def _report(levels: list[Level], fields: Fields, as_json: bool) -> None:
    figures = [level.figures() for level in levels]
    if not figures:
        return
    if as_json:
        emit_json({"call": fields, "levels": figures})
        return
    emit_table(
        (">clients", ">pictures", ">per s", ">p50 (s)", ">p90", ">p99", ">queued", "errors"),
        [_row(row) for row in figures],
    )
    for row in figures:
        if row["cut_short"]:
            say(f"{row['clients']} clients: stopped after {row['seconds']:.0f} s (--seconds)")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    latency = row["latency_s"] or dict.fromkeys(("p50", "p90", "p99"))
    queue = (row["queue_s"] or {"p50": None})["p50"]
    times = [*latency.values(), queue]
    return (
        str(row["clients"]),
        str(row["pictures"]),
        f"{row['pictures_per_s']:.3g}",
        *("" if time is None else f"{time:.3f}" for time in times),
        ", ".join(f"{count} {kind}" for kind, count in row["errors"].items()),
    )
