"""Bodies that are read completely before their call begins, with bounds on size, time and memory.

A call takes one of the server's places as soon as it reaches BentoML. Whoever sends half a body and
then nothing must not hold one, so the body is read first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import Receive

from sdxl_bento.protocols.http.errors import BodyTimeout, BodyTooLarge, TooManyConnections

MIN_BYTES_PER_S = 64 << 10  # a body that arrives at least this fast may take longer


class CallerLeft(Exception):
    """The client has disconnected before its body was complete, so there is nobody to answer."""


@dataclass(eq=False)
class Incoming:
    """One body: how much of it has arrived, and when it last grew, in the loop's seconds."""

    memory: BodyMemory
    size: int = 0
    grew: float = 0.0
    timer: asyncio.Timeout | None = None
    given_up: bool = False
    unread: bool = field(default=False)

    async def read(self, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it has more than `max_bytes`, which are not waited for.
            BodyTimeout: it was not complete in time.
            TooManyConnections: other bodies needed its memory.
            CallerLeft: the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        begin = self.grew = loop.time()
        body = bytearray()
        self.unread = True
        try:
            async with asyncio.timeout(timeout_s) as self.timer:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise CallerLeft
                    if chunk := message.get("body", b""):
                        body += chunk
                        self.grew = loop.time()
                        self.timer.reschedule(begin + timeout_s + len(body) / MIN_BYTES_PER_S)
                        if len(body) > max_bytes:
                            raise too_large(f"over {max_bytes} bytes", max_bytes)
                        self.memory.take(self, len(chunk))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            self.unread = False  # the client sends nothing that could be read on
            if self.given_up:
                raise _no_memory() from None
            shown = f"{len(body)} bytes of it"
            raise BodyTimeout("body", shown, f"all of it within {timeout_s:g} seconds") from None
        finally:
            self.memory.read_to_its_end(self)
        self.unread = False
        return bytes(body)

    def give_up(self) -> None:
        """End the reading, because others need the memory."""
        self.given_up = True
        if self.timer is not None:
            self.timer.reschedule(0)


class BodyMemory:
    """The memory for all bodies together, of calls that run as well as of those that arrive."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._arriving: set[Incoming] = set()

    def begin(self) -> Incoming:
        """A new body, which `end` has to be called for."""
        incoming = Incoming(self)
        self._arriving.add(incoming)
        return incoming

    def take(self, incoming: Incoming, size: int) -> None:
        """Count `size` more bytes. The body that has waited for longest makes room if need be.

        Raises TooManyConnections if no other body is arriving.
        """
        incoming.size += size
        self.used += size
        while self.used > self.max_bytes:
            others = [each for each in self._arriving if each is not incoming and each.size]
            if not others:
                raise _no_memory()
            stalled = min(others, key=lambda each: each.grew)
            stalled.give_up()
            self.end(stalled)

    def read_to_its_end(self, incoming: Incoming) -> None:
        """From now on the body cannot be given up."""
        self._arriving.discard(incoming)

    def end(self, incoming: Incoming) -> None:
        """Give back what a body has taken."""
        self._arriving.discard(incoming)
        self.used -= incoming.size
        incoming.size = 0


def too_large(value: str, max_bytes: int) -> BodyTooLarge:
    """The error of a body over its limit."""
    return BodyTooLarge("body", value, f"at most {max_bytes} bytes")


def _no_memory() -> TooManyConnections:
    return TooManyConnections("too many large bodies arrive at the same time", retry_after_s=1.0)
