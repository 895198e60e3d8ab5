"""Clients: one request, a closed loop of so many clients, an open loop that follows a trace."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.contenders.servers import Server
from benchmarks.stats import Outcome

REQUEST_S = 900.0  # nothing may take longer: a server that hangs ends the run
PNG = b"\x89PNG"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to ask for. Its number gives the prompt and the seed, so no two are alike."""

    number: int
    steps: int
    guidance: float = 5.0
    lora: str | None = None
    slo_s: float | None = None

    def body(self) -> dict[str, Any]:
        body = {
            "prompt": prompt(self.number),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "seed": self.number,
        }
        if self.lora is not None:
            body["loras"] = [{"name": self.lora, "scale": 1.0}]
        if self.slo_s is not None:
            body["slo_ms"] = self.slo_s * 1e3
        return body


@dataclass(frozen=True, slots=True)
class Arrival:
    """An ask of an open loop: when it is due, of which class, and until when it is wanted."""

    at: float
    kind: str
    ask: Ask
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    status: int

    @property
    def ok(self) -> bool:
        return self.status == 200


def prompt(number: int) -> str:
    colour = COLOURS[number % 8]
    shape = SHAPES[number // 8 % 6]
    ground = COLOURS[(number + 1 + number // 48 % 7) % 8]
    return f"a {colour} {shape} on a {ground} background"


class Client:
    """Talks to one contender."""

    def __init__(self, server: Server) -> None:
        self.name = server.contender.name
        self._batched = server.contender.batched
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=server.url, limits=limits, timeout=REQUEST_S)

    async def close(self) -> None:
        await self._http.aclose()

    async def draw(self, ask: Ask) -> Answer:
        """Ask for a picture. A refusal is an answer; a broken picture is not."""
        body = {"asks": [ask.body()]} if self._batched else ask.body()
        begin = time.perf_counter()
        response = await self._http.post("/generate", json=body)
        seconds = time.perf_counter() - begin
        if response.status_code == 200:
            png = base64.b64decode(response.json()[0]) if self._batched else response.content
            if not png.startswith(PNG):
                raise RuntimeError(f"{self.name} answered with something that is no PNG")
        elif response.status_code not in (429, 503):
            raise RuntimeError(f"{self.name}: {response.status_code} {response.text[:500]}")
        return Answer(seconds, response.status_code)

    async def draw_all(self, asks: Iterable[Ask]) -> float:
        """Ask for all at once; the seconds until the last answer. Raises if one is refused."""
        begin = time.perf_counter()
        for answer in await asyncio.gather(*(self.draw(ask) for ask in asks)):
            if not answer.ok:
                raise RuntimeError(f"{self.name} refused a request: {answer.status}")
        return time.perf_counter() - begin


async def closed_loop(client: Client, clients: int, asks: Sequence[Ask]) -> float:
    """So many clients, each asking again once it is answered; pictures a second."""
    left = iter(asks)

    async def one() -> None:
        for ask in left:
            await client.draw_all([ask])

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return len(asks) / (time.perf_counter() - begin)


async def open_loop(
    client: Client, trace: Sequence[Arrival], *, tell_deadline: bool
) -> list[Outcome]:
    """Send each request when it is due, whatever has become of the others."""
    begin = time.perf_counter()

    async def one(arrival: Arrival) -> Outcome:
        await asyncio.sleep(arrival.at - (time.perf_counter() - begin))
        ask = arrival.ask
        if tell_deadline:
            ask = Ask(ask.number, ask.steps, ask.guidance, slo_s=arrival.deadline_s)
        answer = await client.draw(ask)
        seconds = time.perf_counter() - begin - arrival.at if answer.ok else None
        return Outcome(arrival.kind, arrival.deadline_s, seconds, answer.status)

    return list(await asyncio.gather(*(one(arrival) for arrival in trace)))
