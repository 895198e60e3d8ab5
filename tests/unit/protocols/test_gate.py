"""The outermost part of the service: heads, bodies, memory, and what BentoML is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sdxl_bento.app import BODY_LIMITS, web_app
from sdxl_bento.protocols.http.errors import TooManyConnections
from sdxl_bento.protocols.http.gate import Gate
from sdxl_bento.protocols.http.incoming import BodyMemory, Incoming
from sdxl_bento.protocols.http.masking import OTHER, Labels, Unmask

JSON = (b"content-type", b"application/json")


class Inner:
    """Stands in for BentoML: it notes what its middleware and its routes see."""

    def __init__(self) -> None:
        self.masked: list[Any] = []
        self.real: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.masked.append(scope)
        await Unmask(self.route)(scope, receive, send)

    async def route(self, scope: Any, receive: Any, send: Any) -> None:
        self.real.append(scope)
        self.bodies.append((await receive())["body"] if scope["method"] == "POST" else b"")
        status = 429 if scope["path"] == "/full" else 200
        await JSONResponse({"error": "Too many requests"}, status)(scope, receive, send)


class Client:
    """One request, sent piece by piece. A piece that is a number is waited for so many seconds."""

    def __init__(self, *pieces: bytes | float, ends: bool = True) -> None:
        self.pieces = list(pieces)
        self.ends = ends
        self.read = 0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def receive(self) -> Any:
        while self.pieces and isinstance(self.pieces[0], float):  # noqa: ASYNC110
            await asyncio.sleep(float(self.pieces.pop(0)))
        if not self.pieces:
            await asyncio.Event().wait()
        piece = self.pieces.pop(0)
        self.read += len(piece)  # type: ignore[arg-type]
        return {
            "type": "http.request",
            "body": piece,
            "more_body": bool(self.pieces) or not self.ends,
        }

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        self.body += message.get("body", b"")

    async def ask(
        self, gate: Gate, path: str = "/generate", *headers: tuple[bytes, bytes], **more: Any
    ) -> Any:
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": [(b"host", b"test"), *headers], **more}
        await gate(scope, self.receive, self.send)
        return json.loads(self.body)


def gate_of(inner: Any, memory: int = 1000, **more: Any) -> Gate:
    labels = Labels([Route("/images/{image_id}", inner), Mount("/ui", inner)], ["/generate"])
    options = {"default_limit": 100, "timeout_s": 0.1, "memory": BodyMemory(memory)} | more
    return Gate(inner, labels, {"/ui": 500}, **options)


async def test_bentoml_is_told_the_route_alone() -> None:
    inner, client = Inner(), Client(b"{}")
    secrets = (b"content-type", b"application/x-mk7"), (b"traceparent", b"mk7"), (b"cookie", b"mk7")
    await client.ask(gate_of(inner), "/images/mk7", *secrets, query_string=b"mk7")
    [masked], [real] = inner.masked, inner.real
    assert masked["path"] == "/images/{image_id}"
    assert dict(masked["headers"]) == {b"content-type": b"other"}
    told = {key: value for key, value in masked.items() if not key.startswith("sdxl_bento")}
    assert "mk7" not in str(told)
    assert (real["path"], real["query_string"]) == ("/images/mk7", b"mk7")
    assert secrets[2] in real["headers"]
    assert inner.bodies == [b"{}"]


def test_labels() -> None:
    labels = Labels(web_app().routes, ["/generate"])
    assert set(BODY_LIMITS) - {"/img2img", "/refine", "/generate_batch"} <= {
        labels.of(path.replace("{", "").replace("}", "")) for path in BODY_LIMITS
    }
    for path in ("/generate", "/models", "/v2/health/live"):
        assert labels.of(path) == path
    assert labels.of("/ui/gradio_api/queue/data") == "/ui"
    assert labels.of("/v1/models/x:predict") == "/v1/models/{model}:predict"
    assert labels.of("/cancel/x") == "/cancel/{request_id}"
    for path in ("/generate/", "/uix", "/images/a/b/c", "/cancel/a\n", "/nothing"):
        assert labels.of(path) in (OTHER, "/cancel/{request_id}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query_string": b"a" * 9000}, "address"),
        ({"query_string": b"\xff"}, "address"),
        ({"headers": [(b"a", b"b")] * 129}, "headers"),
        ({"headers": [(b"content-type", b"application/json\x80")]}, "Content-Type"),
        ({"headers": [(b"content-type", b"a" * 257)]}, "Content-Type"),
        *[({"headers": [(b"host", host)]}, "Host") for host in (b"[", b"a b", b"a:99999", b"\xff")],
    ],
)
async def test_a_head_that_is_wrong(change: Any, field: str) -> None:
    inner, client = Inner(), Client(b"{}")
    answer = await client.ask(gate_of(inner), **change)
    assert client.status == 400
    assert answer["error"]["field"] == field
    assert client.headers[b"connection"] == b"close"
    assert not inner.masked


async def test_a_method_that_no_route_has() -> None:
    inner, client = Inner(), Client(b"{}")
    answer = await client.ask(gate_of(inner), method="TRACE")
    assert (client.status, answer["error"]["type"]) == (405, "method_not_allowed")
    assert b"POST" in client.headers[b"allow"]


async def test_errors_have_the_envelope_of_their_route() -> None:
    inner, client = Inner(), Client(b"{}")
    assert (await client.ask(gate_of(inner), "/v2/x", (b"host", b"[")))["error"].startswith("Host")
    client = Client(b"{}")
    answer = await client.ask(gate_of(inner), "/full")
    assert (client.status, answer["error"]["type"]) == (429, "overloaded")
    assert client.headers[b"retry-after"] == b"1", "BentoML's own answers have none"


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    inner, client = Inner(), Client(b"x" * 101)
    client.pieces = []
    ask = client.ask(gate_of(inner), "/generate", (b"content-length", b"101"))
    answer = await asyncio.wait_for(ask, 5)  # it lingers, for a client that sends all the same
    assert (client.status, answer["error"]["type"], client.read) == (413, "body_too_large", 0)
    assert not inner.masked


async def test_a_body_is_cut_after_its_limit() -> None:
    counted: list[str] = []
    inner, client = Inner(), Client(*[b"x" * 60] * 3, ends=True)
    await client.ask(gate_of(inner, count=counted.append))
    assert client.status == 413
    assert counted == ["too_large"]
    assert not inner.masked
    client = Client(*[b"x" * 60] * 3)
    await client.ask(gate_of(inner), "/ui/upload")
    assert client.status == 200
    assert inner.bodies == [b"x" * 180]


async def test_half_a_body_is_no_call() -> None:
    inner, client = Inner(), Client(b"{", ends=False)
    answer = await client.ask(gate_of(inner))
    assert (client.status, answer["error"]["type"]) == (408, "body_timeout")
    assert not inner.masked


async def test_a_body_that_arrives_slowly_but_steadily_is_read() -> None:
    inner = Inner()
    gate = gate_of(inner, memory=1 << 20, default_limit=1 << 20, timeout_s=0.3)
    client = Client(*[b"x" * 32_768, 0.2] * 3, b"x")
    await client.ask(gate)
    assert client.status == 200


async def test_the_body_that_has_stalled_makes_room() -> None:
    inner = Inner()
    gate = gate_of(inner, memory=150, timeout_s=5)
    stalled, other = Client(b"x" * 60, ends=False), Client(b"x" * 60, ends=False)
    waiting = [asyncio.create_task(each.ask(gate)) for each in (stalled, other)]
    await asyncio.sleep(0.01)
    client = Client(b"y" * 60)
    await client.ask(gate)
    await asyncio.wait_for(waiting[0], 2)
    assert (client.status, stalled.status, other.status) == (200, 429, 0)
    assert stalled.headers[b"retry-after"] == b"1"
    waiting[1].cancel()


async def test_memory_is_given_back() -> None:
    memory = BodyMemory(100)
    first, second = memory.begin(), memory.begin()
    memory.take(first, 90)
    memory.read_to_its_end(first)  # its call runs, so it cannot make room
    with pytest.raises(TooManyConnections):
        memory.take(second, 20)
    memory.end(second)
    memory.end(first)
    assert memory.used == 0
    assert isinstance(memory.begin(), Incoming)


async def test_whoever_leaves_is_not_answered() -> None:
    inner, client = Inner(), Client()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    client.receive = gone  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Expecting value"):
        await client.ask(gate_of(inner))
    assert client.status == 0
    assert not inner.masked


async def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gate_of(Inner())({"type": "websocket"}, Client().receive, send)
    assert [each["type"] for each in sent] == ["websocket.close"]


async def test_scrapes_at_the_same_time_are_one() -> None:
    inner = Inner()
    go_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await inner(scope, receive, send)

    labels = Labels([], ["/metrics"])
    gate = Gate(slow, labels, {}, default_limit=1, timeout_s=1, memory=BodyMemory(9))
    clients = [Client() for _ in range(5)]
    asked = [asyncio.create_task(each.ask(gate, "/metrics", method="GET")) for each in clients]
    await asyncio.sleep(0.01)
    asked[0].cancel()  # that one has left; the others still want it
    go_on.set()
    done = await asyncio.gather(*asked[1:])
    assert done == [{"error": "Too many requests"}] * 4
    assert len(inner.masked) == 1
    await Client().ask(gate, "/metrics", method="GET")
    assert len(inner.masked) == 2
