"""Bounds on connections: how long the head of a request may take, and how many one client has.

uvicorn has no settings for these, and BentoML starts uvicorn. `guard_connections` therefore
registers the class below as uvicorn's protocol. See ADR 29.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import uvicorn.config
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sdxl_bento.protocols.http.errors import TooManyConnections, error_response
from sdxl_bento.protocols.http.middleware import ErrorBodies

logger = logging.getLogger(f"bentoml.{__name__}")

MAX_HEAD_BYTES = 64 << 10
# Bytes of one read from a connection.
_SHORT_READ, _LONG_READ = 2 << 10, 32 << 10
# Of the addresses that keep an eye on the server, whoever else there is.
_PROBES = frozenset(("/livez", "/readyz", "/healthz", "/metrics"))
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n"
)


@dataclass
class Connections:
    """The open connections of this process.

    A client that has its share gets another one all the same if one of its connections waits for
    the client: that of which nothing has been heard for longest is closed. So a caller who opens
    many and sends nothing loses those, and whoever has the same address still gets in.

    Attributes:
        timeout_s: seconds in which the head of a request has to be complete.
        per_client: how many connections one address may have; 0 is any number.
        total: how many all may have together.
        wrap: what to put around the server's app.
        count: called with the reason for each connection that is turned away or closed.
    """

    timeout_s: float
    per_client: int
    total: int
    wrap: Callable[[ASGIApp], ASGIApp]
    count: Callable[[str], None] = lambda reason: None
    _by_client: defaultdict[str, set[Connection]] = field(default_factory=lambda: defaultdict(set))
    _wrapped: tuple[ASGIApp, ASGIApp] | None = None

    def app_around(self, app: ASGIApp) -> ASGIApp:
        """`wrap(app)`, the same one for all connections."""
        if self._wrapped is None or self._wrapped[0] is not app:
            self._wrapped = app, self.wrap(app)
        return self._wrapped[1]

    def add(self, connection: Connection) -> bool:
        """Add a connection, and close another one if need be. False: there is no room for it."""
        mates = self._by_client[connection.address]
        mates.add(connection)
        if self.per_client and len(mates) > self.per_client:
            return self._make_room(mates, connection)
        everyone = [each for clients in self._by_client.values() for each in clients]
        return len(everyone) <= self.total or self._make_room(everyone, connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        mates = self._by_client.get(connection.address, set())
        mates.discard(connection)
        if not mates:
            self._by_client.pop(connection.address, None)

    def _make_room(self, among: Iterable[Connection], newcomer: Connection) -> bool:
        waiting = [each for each in among if each is not newcomer and each.waits_for_client]
        if not waiting:
            return False
        self.count("connections")
        stalled = min(waiting, key=lambda each: each.heard)
        self.remove(stalled)  # now, and not only when the loop gets to closing it
        stalled.turn_away(_LATE)
        return True


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol of one connection, within `bounds`."""

    bounds: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: ASGIApp = self.bounds.app_around(self.app)
        self.ws_protocol_class = None  # its connections would leave this class, and no route has it
        self.address = ""
        self.heard = 0.0
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_head(self) -> bool:
        """Whether no request is at work: the next one's head is not complete."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send the rest of a request, or to read an answer."""
        return self.waits_for_head or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.heard = self.loop.time()
        self._start_timer()
        end_if_not_read(transport, self.bounds.timeout_s)
        self._read_in_steps()
        if not self.bounds.add(self):
            self.bounds.count("connections")
            self.app = refusing(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.remove(self)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        try:
            super().data_received(data)
        except Exception as error:  # uvicorn's parser in a state that it does not expect
            logger.warning("a connection is closed: %s", type(error).__name__)
            self.transport.abort()
            return
        self._read_in_steps()
        if not self.waits_for_head:
            self._stop_timer()
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.turn_away(_LARGE)
        elif self._head_timer is None:
            self._start_timer()

    def _read_in_steps(self) -> None:
        """Let one read hold no more than the parser goes through quickly.

        It takes each chunk of a body, each header and each request on its own, and a chunk can be
        one byte. A body whose length was declared is one piece, however long it is.
        """
        is_whole = (
            not self.waits_for_head
            and self.cycle.more_body
            and all(name != b"transfer-encoding" for name, _ in self.cycle.scope["headers"])
        )
        if hasattr(self.transport, "max_size"):  # asyncio's; uvloop has none
            self.transport.max_size = _LONG_READ if is_whole else _SHORT_READ

    def turn_away(self, answer: bytes) -> None:
        """Close the connection, with an answer if the client reads."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()
            return
        if self._head_bytes or not self.waits_for_head:
            self.transport.write(answer)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: whoever asks for another protocol is answered in HTTP/1.1."""

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.bounds.timeout_s, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.waits_for_head:
            self.bounds.count("too_slow")
            self.turn_away(_LATE)


def guard_connections(connections: Connections) -> None:
    """Let the servers that uvicorn starts in this process keep these bounds."""
    Connection.bounds = connections
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def most_connections() -> int:
    """Three quarters of the files that this process may open: models and stores need some too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(soft * 3 // 4, 1)


def end_if_not_read(transport: asyncio.Transport, timeout_s: float) -> None:
    """Let the kernel end the connection if its client takes nothing of an answer for that long."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux alone has it
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, int(timeout_s * 1e3))


def refusing(app: ASGIApp) -> ASGIApp:
    """An app that refuses every request but those of probes, which `app` answers."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        error = TooManyConnections("this address has too many connections", retry_after_s=1.0)
        response = error_response(error)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)

    refused = ErrorBodies(refuse)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["path"] in _PROBES else refused)(scope, receive, send)

    return answer
