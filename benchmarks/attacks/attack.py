"""One kind of abuse, and the server that it is tried on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

ANSWER_S = 60.0


@dataclass
class Site:
    """The server, seen by an attacker."""

    url: str
    model: str
    http: httpx.AsyncClient
    memory: dict[str, Any] = field(default_factory=dict)  # what an attack keeps between its tries

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    async def raw(self, request: bytes, answer_s: float = ANSWER_S) -> bytes:
        """Send bytes as they are; all that comes back until the server closes or is silent."""
        reader, writer = await asyncio.open_connection(*self.address)
        received = b""
        try:
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(answer_s):
                while chunk := await reader.read(65536):
                    received += chunk
                    if _is_whole(received):
                        break
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return received


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(separator) and len(body) >= int(line.partition(b":")[2])
    return False


def status_of(received: bytes) -> int | None:
    """The status of a raw answer; None if there is none."""
    parts = received.split(b" ", 2)
    return int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else None


# Tries once. Returns None if the server did what it promises, otherwise what it did.
Try = Callable[[Site, random.Random], Awaitable[str | None]]


@dataclass(frozen=True)
class Attack:
    """A kind of abuse.

    Attributes:
        name: on the command line.
        title: of its row in the table.
        once: tries once.
        clients: how many try at the same time.
        draws: whether it makes the server draw, so that others rightly share the device with it.
        pause_s: seconds between two tries of a client.
    """

    name: str
    title: str
    once: Try
    clients: int = 4
    draws: bool = False
    pause_s: float = 0.0


@dataclass
class Result:
    """What became of the tries. `surprises` has some answers that were not as promised."""

    tried: int = 0
    held: int = 0
    surprises: list[str] = field(default_factory=list)


async def run(attack: Attack, site: Site, seconds: float, seed: int) -> Result:
    """Try again and again for some seconds, each client once at least."""
    result, end = Result(), time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while True:
            try:
                surprise = await attack.once(site, rng)
            except (httpx.HTTPError, OSError) as error:
                surprise = f"{type(error).__name__}: {error}"
            result.tried += 1
            result.held += surprise is None
            if surprise is not None and len(result.surprises) < 20:
                result.surprises.append(surprise[:300])
            await asyncio.sleep(attack.pause_s)
            if time.monotonic() > end:
                return

    await asyncio.gather(*(client(number) for number in range(attack.clients)))
    return result


def told(response: httpx.Response, *statuses: int) -> str | None:
    """Whether it has one of the statuses, and an error the form of its protocol's."""
    what = f"{response.request.method} {response.request.url.path}: {response.status_code} "
    if response.status_code not in statuses:
        return what + response.text[:200]
    if response.status_code >= 400 and not _explains(response):
        return what + f"without an explanation: {response.text[:200]}"
    if response.status_code in (429, 503) and "retry-after" not in response.headers:
        return what + "without Retry-After"
    return None


def _explains(response: httpx.Response) -> bool:
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and bool(body.get("error") or body.get("detail"))
