"""Does every request, however wrong, get an answer that the documentation describes?

The real service runs in this process over an engine that draws nothing, and is called as uvicorn
would call it, so thousands of requests a second need no sockets. Requests are made from right ones
by a generator with a seed: values, names and types in their JSON are replaced, their bytes are
changed or cut, their headers, forms, tensors and addresses are spoilt. A request counts as

- `undocumented` if its status is not among those of its route in the OpenAPI document,
- `envelope` if the body of its error has not the form of its route's protocol,
- `uncaught` if an exception left the service, or a traceback was logged,
- `told` if a log line held a text that was only in requests.

`stall_ms` is the longest time for which the event loop was held, and `slowest_s` the longest
answer, each with the number of its request. `--worst` sends, before the others, the body of each
kind that takes longest to read at the largest size allowed; `worst_ms` is the longest time for
which any of these held the loop, and its kind. `scrape_bytes` and `scrape_s` are the size of
`/metrics` after all these requests, and how long it takes.

    python -m benchmarks fuzz --count 100000 --seed 1
    python -m benchmarks fuzz --seed 1 --only 4711   # one request again, with its answer
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz_requests import MARK, Sent, request_of
from benchmarks.fuzz_worst import worst_requests

TICK_S = 0.005
ENVELOPES: dict[str, Callable[[Any], bool]] = {
    "native": lambda body: isinstance(body["error"]["message"], str),
    "openai": lambda body: {"message", "type", "param", "code"} <= body["error"].keys(),
    "kserve": lambda body: isinstance(body["error"], str),
    "automatic1111": lambda body: {"error", "detail", "errors"} <= body.keys(),
    "gradio": lambda body: isinstance(body["detail"], str),
}
# Of addresses that the document does not describe.
UNDESCRIBED = frozenset(
    (200, 204, 206, 304, 307, 400, 403, 404, 405, 408, 409, 413, 415, 416, 422, 429)
)


@dataclass
class Found:
    """What went wrong, with the numbers of the first requests that show it."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    stall_ms: tuple[float, int] = (0.0, -1)
    scrape: tuple[int, float] = (0, 0.0)
    worst: list[tuple[float, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)

    def note(self, kind: str, number: int, text: str) -> None:
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < 10:
            shown.append(f"{number}: {text[:300]}")


class Listener(logging.Handler):
    """Notes tracebacks and what callers wrote, in any log line."""

    def __init__(self, found: Found) -> None:
        super().__init__(logging.DEBUG)
        self.found = found
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if MARK in text:
            self.found.note("told", self.number, text)
        if record.exc_text or record.exc_info:
            self.found.note("uncaught", self.number, text[-300:])


async def call(app: Any, sent: Sent) -> tuple[int, bytes]:
    """The status and body of the answer to one request."""
    queue = [
        {"type": "http.request", "body": piece, "more_body": index + 1 < len(sent.pieces)}
        for index, piece in enumerate(sent.pieces)
    ]
    status, body = 0, bytearray()
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if queue:
            await asyncio.sleep(0)  # as if they came one after the other
            return queue.pop(0)
        if not sent.complete:
            return {"type": "http.disconnect"}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body.extend(message.get("body", b""))

    try:
        await asyncio.wait_for(app(sent.scope(), receive, send), 30)
    finally:
        ended.set()
    return status, bytes(body)


def judge(found: Found, number: int, sent: Sent, status: int, body: bytes) -> None:
    """Compare an answer with the documentation."""
    from sdxl_bento.protocols.http.envelopes import envelope_of
    from sdxl_bento.protocols.openapi import document
    from tests.support.conformity import described_path

    found.statuses[status] += 1
    if not sent.complete and status == 0:
        return
    path = described_path(sent.path)
    operation = document()["paths"][path].get(sent.method.lower()) if path else None
    known = UNDESCRIBED if operation is None else {int(each) for each in operation["responses"]}
    if status not in known:
        found.note("undocumented", number, f"{status} {sent} {body[:200]!r}")
    if status < 400:
        return
    try:
        right = ENVELOPES[envelope_of(sent.path).__name__](json.loads(body))
    except Exception:
        right = False
    if not right:
        found.note("envelope", number, f"{status} {sent} {body[:200]!r}")


async def watch(found: Found, listener: Listener) -> None:
    """Measure for how long the loop is held, and by which request."""
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(TICK_S)
        stall = (time.perf_counter() - begin - TICK_S) * 1e3
        found.stall_ms = max(found.stall_ms, (stall, listener.number))


async def send_worst(app: Any, found: Found, page: bool) -> None:
    """Send the worst body of each kind, and note how long the loop was held."""
    for kind, sent in worst_requests(page=page):
        await asyncio.sleep(2 * TICK_S)  # what it took to make the request does not count
        found.stall_ms = (0.0, -1)
        begin = time.perf_counter()
        status, body = await call(app, sent)
        await asyncio.sleep(2 * TICK_S)
        judge(found, -1, sent, status, body)
        seconds = time.perf_counter() - begin
        found.worst.append((round(found.stall_ms[0], 1), kind))
        line = f"{kind:45} {status} held {found.stall_ms[0]:7.1f} ms, answered in {seconds:.2f} s"
        print(line, file=sys.stderr)
    found.stall_ms = (0.0, -1)


async def run(options: argparse.Namespace, found: Found) -> None:
    import tests.support.faked_service  # first: it replaces the engine
    from sdxl_bento.app import gate_around
    from service import METHODS, SETTINGS, WEB, SDXLService

    assert tests.support.faked_service.SDXLService is SDXLService
    inner: Any = SDXLService.to_asgi()
    listener = Listener(found)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(inner.router.lifespan_context(inner))
        for name in (None, "bentoml", "uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(listener)
        app = gate_around(inner, WEB, METHODS, SETTINGS)
        ready = Sent("GET", "/readyz", [], [b""])
        while (await call(app, ready))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if options.page:
            await call(app, Sent("GET", "/ui/", [], [b""]))
            await call(app, Sent("GET", "/ui/config", [], [b""]))  # waits until it is built
        watching = asyncio.create_task(watch(found, listener))
        if options.worst:
            await send_worst(app, found, options.page)
        numbers = [options.only] if options.only is not None else range(options.count)
        begin = time.monotonic()
        for number in numbers:
            if time.monotonic() - begin > options.seconds:
                break
            sent = request_of(random.Random(f"{options.seed}.{number}"), page=options.page)
            listener.number, start = number, time.perf_counter()
            try:
                status, body = await call(app, sent)
            except Exception as error:
                found.note("uncaught", number, f"{error!r} {sent}")
                continue
            judge(found, number, sent, status, body)
            found.slowest = max(found.slowest, (time.perf_counter() - start, number))
            if options.only is not None:
                print(sent, sent.headers, sent.pieces, status, body[:2000], sep="\n")
        begin = time.perf_counter()
        _, text = await call(app, Sent("GET", "/metrics", [], [b""]))
        found.scrape = len(text), time.perf_counter() - begin
        watching.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="number of requests")
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one request to repeat")
    parser.add_argument("--worst", action="store_true", help="send the worst bodies, too")
    parser.add_argument("--no-page", dest="page", action="store_false", help="without Gradio")
    options = parser.parse_args()
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        from tests.support.server import faked_environment

        os.environ |= faked_environment(Path(folder, "home"), SDXL_UI=options.page)
        os.environ |= {"SDXL_STORE": str(Path(folder, "store")), "BENTOML_DO_NOT_TRACK": "True"}
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        begin = time.monotonic()
        asyncio.run(run(options, found))
    wrong = {kind: found.counts[kind] for kind in ("undocumented", "envelope", "uncaught", "told")}
    for kind, examples in found.examples.items():
        print(kind, *examples, sep="\n  ", file=sys.stderr)
    result = {
        "tried": sum(found.statuses.values()),
        **wrong,
        "stall_ms": [round(found.stall_ms[0], 1), found.stall_ms[1]],
        "worst_ms": max(found.worst, default=None),
        "scrape_bytes": found.scrape[0],
        "scrape_s": round(found.scrape[1], 3),
        "slowest_s": [round(found.slowest[0], 2), found.slowest[1]],
        "seconds": round(time.monotonic() - begin, 1),
        "statuses": {str(key): found.statuses[key] for key in sorted(found.statuses)},
    }
    print(json.dumps(result))
    raise SystemExit(1 if any(wrong.values()) else 0)


if __name__ == "__main__":
    main()
