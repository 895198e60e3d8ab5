"""Connections that are opened and not used as they should be."""

from __future__ import annotations

import asyncio
import contextlib
import random

from benchmarks.attacks.attack import Attack, Site, status_of

CALL = b'{"prompt": "x", "num_inference_steps": 50}'


def _head(site: Site, path: str, length: int) -> bytes:
    host, port = site.address
    lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


async def _half(site: Site, sent: bytes) -> str | None:
    """Send a part of a request and wait. Others, and not the sender, are what it is about."""
    try:
        reader, writer = await asyncio.open_connection(*site.address)
    except ConnectionError:
        return None  # it takes no more from this address
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(site.memory.get("patience_s", 45.0)):
            received = await reader.read(1000)
    except TimeoutError:
        return "still open after 45 seconds"
    except ConnectionError:
        return None
    finally:
        writer.close()
    ended = not received or status_of(received) in (400, 408, 429, 503)
    return None if ended else f"{received[:100]!r}"


async def half_bodies(site: Site, rng: random.Random) -> str | None:
    """A body that is never finished."""
    return await _half(site, _head(site, "/generate", 1000) + CALL[: rng.randrange(len(CALL))])


async def half_headers(site: Site, rng: random.Random) -> str | None:
    """A head that is never finished."""
    head = _head(site, "/generate", 1000)
    return await _half(site, head[: rng.randrange(1, len(head) - 4)])


async def leaving(site: Site, rng: random.Random) -> str | None:
    """A call whose sender has left before it is drawn."""
    _, writer = await asyncio.open_connection(*site.address)
    writer.write(_head(site, "/generate", len(CALL)) + CALL)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    await asyncio.sleep(rng.random() * 0.05)
    writer.transport.abort()
    return None


async def after_leaving(site: Site) -> str | None:
    """Whether nothing is left running of the calls whose senders have left."""
    for _ in range(100):
        stats = (await site.http.get("/stats")).json()
        if not stats.get("running") and not stats.get("waiting"):
            return None
        await asyncio.sleep(0.1)
    return f"still busy: {stats}"


CONNECTIONS = (
    Attack("half-bodies", "half-sent bodies", half_bodies, clients=300),
    Attack("half-headers", "half-sent headers", half_headers, clients=300),
    Attack("leaving", "callers who leave", leaving, clients=4, draws=True, pause_s=0.2),
)
