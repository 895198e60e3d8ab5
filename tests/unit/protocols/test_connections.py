"""Connections under uvicorn: late heads, shares of one address, and who is closed for whom."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from sdxl_bento.protocols.http import connections
from sdxl_bento.protocols.http.connections import Connections, guard_connections

HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Open = Callable[[bytes], Any]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, or, at /wait, when the client has left."""
    while scope["path"] == "/wait" or scope["method"] == "POST":
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", True):
            break
    if scope["path"] == "/wait":
        await receive()
        return
    body = b"x" * 20_000_000 if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])


@asynccontextmanager
async def served(counted: list[str] | None = None, **more: Any) -> AsyncIterator[Open]:
    """A server in this loop. Yields a function that connects, sends, and returns the streams."""
    limits = {"timeout_s": 0.25, "per_client": 4, "total": 100, "wrap": lambda app: app} | more
    guard_connections(Connections(**limits, count=([] if counted is None else counted).append))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        opened = []

        async def connect(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            opened.append(writer)
            writer.write(data)
            await asyncio.sleep(0.01)
            return reader, writer

        try:
            yield connect
        finally:
            for writer in opened:
                writer.close()
            server.should_exit = True
            await serving


async def answer(reader: asyncio.StreamReader) -> bytes:
    """What is sent until the connection ends; empty if it is reset."""
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""


async def status(connect: Open, path: str = "/") -> int:
    reader, _ = await connect(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    return int((await answer(reader)).split()[1])


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_a_head_that_does_not_come_ends_the_connection(begin: bytes) -> None:
    counted: list[str] = []
    async with served(counted) as connect:
        reader, _ = await connect(begin)
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 " if begin else b"")
        assert counted == ["too_slow"]
        # Also the second one of a connection, even if it is sent byte by byte.
        reader, writer = await connect(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        for byte in b"GET / HT":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.03)
        assert (await answer(reader)).startswith(b"HTTP/1.1 408")


async def test_a_head_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 1000)
    async with served() as connect:
        reader, _ = await connect(b"GET / HTTP/1.1\r\nA: " + b"a" * 1000)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431")


async def test_half_sent_requests_make_room_for_others() -> None:
    counted: list[str] = []
    async with served(counted, timeout_s=30) as connect:
        half = [await connect(HALF) for _ in range(4)]
        assert await status(connect) == 200
        assert (await answer(half[0][0])).startswith(b"HTTP/1.1 408"), "the oldest goes"
        assert counted == ["connections"]
        half[1][1].write(b"more")  # it has been heard of, so the next one goes
        await asyncio.sleep(0.01)
        await connect(HALF)
        await connect(HALF)
        assert (await answer(half[2][0])).startswith(b"HTTP/1.1 408")
        half[1][1].write(b"!")
        assert (await half[1][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_a_burst_is_bounded_too() -> None:
    async with served(timeout_s=30) as connect:
        await asyncio.gather(*(connect(HALF) for _ in range(40)))
        [mates] = connections.Connection.bounds._by_client.values()
        assert len(mates) <= 4
        assert len([each for each in mates if not each.transport.is_closing()]) == 4


async def test_an_address_with_its_share_of_running_requests_is_refused() -> None:
    async with served() as connect:
        for _ in range(4):
            await connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        reader, _ = await connect(GET)
        refused = await answer(reader)
        assert refused.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1\r\n" in refused.lower()
        assert b"too_many_connections" in refused
        assert await status(connect, "/livez") == 200, "probes are let through"


async def test_zero_is_any_number_and_all_together_are_bounded() -> None:
    async with served(per_client=0, total=6) as connect:
        for _ in range(6):
            await connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await status(connect) == 429
    async with served(per_client=0) as connect:
        for _ in range(8):
            await connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await status(connect) == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it")
async def test_whoever_does_not_read_an_answer_is_disconnected() -> None:
    async with served() as connect:
        _, writer = await connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.transport.pause_reading()
        bounds = connections.Connection.bounds
        async with asyncio.timeout(20):
            while bounds._by_client:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_upgrades_are_answered_in_http() -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    async with served() as connect:
        reader, _ = await connect(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + key)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_a_parser_that_fails_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as connect:
        begin = b"POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, _ = await connect(begin + b"zz\r\n")
        assert (await answer(reader)).startswith((b"HTTP/1.1 400", b""))
        assert await status(connect) == 200
    assert "Traceback" not in caplog.text


async def test_bodies_in_chunks_are_parsed_in_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    parse = connections.AutoHTTPProtocol.data_received

    def noted(self: Any, data: bytes) -> None:
        steps.append(len(data))
        parse(self, data)

    monkeypatch.setattr(connections.AutoHTTPProtocol, "data_received", noted)
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    whole = head + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n"
    async with served(timeout_s=5) as connect:
        reader, writer = await connect(whole)
        await reader.readuntil(b"ok")
        assert max(steps) > 10_000
        steps.clear()
        writer.write(chunked)
        await reader.readuntil(b"ok")
        assert max(steps) <= 2048
