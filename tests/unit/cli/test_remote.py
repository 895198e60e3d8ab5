"""What is sent to a server, and how its answers and its events are read."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from sdxl_bento.cli import remote
from sdxl_bento.cli.drawer import InitImage, Result
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.remote import RemoteDrawer, answer_of, result_of
from sdxl_bento.serving.results import Progress

URL = "http://server:3000"
Handler = Callable[[httpx.Request], httpx.Response]


def answer(*files: bytes) -> dict[str, Any]:
    """What a server answers to a call."""
    images = [
        {"seed": i, "b64_json": base64.b64encode(each).decode()} for i, each in enumerate(files)
    ]
    return {"request_id": "r", "images": images}


def event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


STEP = {"request_id": "r", "index": 0, "stage": "base", "step": 1, "steps": 4}
QUEUED = {"request_id": "r", "index": 1, "stage": "queued", "position": 3}
DONE = event("done", answer(b"one"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Let a function answer in the place of a server."""
    client = httpx.AsyncClient

    def install(handler: Handler) -> None:
        transport = httpx.MockTransport(handler)
        monkeypatch.setattr(
            remote.httpx, "AsyncClient", lambda **more: client(transport=transport, **more)
        )

    return install


class Chunks(httpx.AsyncByteStream):
    """A body that comes in pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        self.closed = True


def streamed(data: bytes, size: int = 1 << 20) -> tuple[Handler, Chunks]:
    """A server that sends these events, `size` bytes at a time."""
    body = Chunks(data[i : i + size] for i in range(0, len(data), size))
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return lambda _: httpx.Response(200, headers=headers, stream=body), body


async def follow(seen: list[Progress] | None = None) -> Result:
    noted: list[Progress] = [] if seen is None else seen
    async with RemoteDrawer(URL) as drawer:
        return await drawer.draw({"prompt": "x"}, None, noted.append)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_come_in_any_pieces(
    serve: Callable[[Handler], None], size: int, newline: bytes
) -> None:
    done = json.dumps(answer(b"one", b"two"), indent=1).replace("\n", "\ndata: ")
    data = (
        b": still here\n\n" + event("queued", QUEUED) + event("step", STEP)
        + b"event: preview\ndata: no JSON\n\n" + b"data: {}\n\n"
        + f"id: 1\nevent: done\ndata: {done}\n\n".encode() + event("step", {})
    )  # fmt: skip
    handler, body = streamed(data.replace(b"\n", newline), size)
    serve(handler)
    seen: list[Progress] = []
    result = await follow(seen)
    assert result.files == (b"one", b"two")
    assert result.answer == {"request_id": "r", "images": [{"seed": 0}, {"seed": 1}]}
    assert seen == [
        Progress("r", 1, "queued", 0, 0, position=3),
        Progress("r", 0, "base", 1, 4, position=0),
    ]
    assert body.closed


async def test_an_error_event_is_the_servers_error(serve: Callable[[Handler], None]) -> None:
    error = {"type": "overloaded", "message": "full", "retry_after_s": 2, "status": 429}
    serve(streamed(event("step", STEP) + event("error", {"error": error}) + DONE)[0])
    with pytest.raises(Failure, match="full") as caught:
        await follow()
    assert caught.value.code is ExitCode.UNAVAILABLE
    assert caught.value.line == "full (try again in 2 s)"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "connection_lost"),
        (event("step", STEP), "connection_lost"),
        (b"event: done\ndata: {}", "connection_lost"),  # without an end, an event does not count
        (b"event: done\ndata: {\n\n", "unexpected_answer"),
        (event("done", {"images": [{"b64_json": "#"}]}), "unexpected_answer"),
        (event("done", []), "unexpected_answer"),
        (event("step", {"stage": "base"}), "unexpected_answer"),
        (event("error", {"error": "text"}), "unexpected_answer"),
    ],
)
async def test_a_broken_stream(serve: Callable[[Handler], None], data: bytes, kind: str) -> None:
    serve(streamed(data)[0])
    with pytest.raises(Failure) as caught:
        await follow()
    assert caught.value.body["type"] == kind


@pytest.mark.parametrize(
    ("init_image", "with_progress", "path", "accept", "silence_s"),
    [
        (None, False, "/generate", "application/json", None),
        (None, True, "/generate/stream", "*/*", 60.0),
        (InitImage(b"file"), True, "/img2img", "application/json", None),
        (InitImage(b"file", "refine"), False, "/refine", "application/json", None),
    ],
)
async def test_which_route_a_call_takes(
    serve: Callable[[Handler], None],
    init_image: InitImage | None,
    with_progress: bool,
    path: str,
    accept: str,
    silence_s: float | None,
) -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if with_progress and init_image is None:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=DONE)
        return httpx.Response(200, json=answer(b"one"))

    serve(handler)
    fields = {"prompt": "x", "seed": 2**63 - 1}
    async with RemoteDrawer(URL) as drawer:
        result = await drawer.draw(fields, init_image, print if with_progress else None)
    (request,) = asked
    assert result.files == (b"one",)
    assert (request.method, str(request.url)) == ("POST", URL + path)
    image = {} if init_image is None else {"image": base64.b64encode(b"file").decode()}
    assert json.loads(request.content) == fields | image
    assert request.headers["accept"] == accept
    assert request.extensions["timeout"]["read"] == silence_s
    assert request.extensions["timeout"]["connect"] == 10.0


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ConnectError("refused"), "unreachable", "no server answers at .*refused.*running"),
        (httpx.ConnectTimeout(""), "unreachable", "no server answers at .*ConnectTimeout"),
        (httpx.ReadTimeout(""), "connection_lost", "the connection to .* was lost .ReadTimeout."),
        (httpx.RemoteProtocolError("gone"), "connection_lost", "was lost .gone."),
    ],
)
@pytest.mark.parametrize("with_progress", [True, False])
async def test_a_connection_that_fails(
    serve: Callable[[Handler], None],
    error: httpx.TransportError,
    kind: str,
    words: str,
    with_progress: bool,
) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    serve(handler)
    async with RemoteDrawer(URL) as drawer:
        with pytest.raises(Failure, match=words) as caught:
            await drawer.draw({}, None, print if with_progress else None)
    assert (caught.value.code, caught.value.body["type"]) == (ExitCode.UNREACHABLE, kind)


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [
        ("7", {}, 7),
        ("7", {"retry_after_s": 3.5}, 3.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", {}, None),
        (None, {}, None),
    ],
)
def test_when_to_try_again(header: str | None, body: dict[str, object], seconds: object) -> None:
    headers = {} if header is None else {"Retry-After": header}
    response = httpx.Response(
        429, headers=headers, json={"error": {"message": "full"} | body},
        request=httpx.Request("GET", URL),
    )  # fmt: skip
    with pytest.raises(Failure) as caught:
        answer_of(response, URL)
    assert caught.value.body.get("retry_after_s") == seconds


@pytest.mark.parametrize(
    "wrong", [{}, {"images": None}, {"images": [{}]}, {"images": [{"b64_json": "a"}]}]
)
def test_an_answer_without_pictures(wrong: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="has no pictures in it"):
        result_of(wrong)
