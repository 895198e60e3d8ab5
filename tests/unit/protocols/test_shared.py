"""What all protocols share: headers of answers, bodies, forms, errors and their envelopes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sdxl_bento import errors
from sdxl_bento.config import Settings
from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http import bodies, envelopes, forms
from sdxl_bento.protocols.http.answers import answer_headers, cache_header, picture_response
from sdxl_bento.protocols.http.bodies import Call, cache_control, with_headers
from sdxl_bento.protocols.http.caller import Caller, limited, request_id_of
from sdxl_bento.protocols.http.cross_origin import EXPOSED, cors_options
from sdxl_bento.protocols.http.errors import (
    BodyTooLarge,
    MalformedBody,
    UnsupportedBody,
    error_body,
    error_response,
    logged,
)
from sdxl_bento.protocols.http.event_stream import event
from sdxl_bento.protocols.http.middleware import ErrorBodies
from sdxl_bento.protocols.http.progress import events_of, outcome
from sdxl_bento.protocols.http.translation import Rules, Sent
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.serving.results import CallWarning, Generation, Progress, Timings

# Answers


def answer(
    *cached: bool | None, ids: Sequence[str | None] = ("i", "j"), output_format: Any = "webp"
) -> Answer:
    fields = {"model": "m", "width": 64, "height": 64, "seed": 1, "sampler": "ddim"}
    order = Resolved("generate", ResolvedParams(prompt="a", **fields))  # type: ignore[arg-type]
    pictures = tuple(
        Picture(b"f%d" % index, output_format, ids[index], 3 + index, 64, 64, index, hit)
        for index, hit in enumerate(cached)
    )
    return Answer(Generation("r", order, (), Timings(0.001, 0, 0.5, 0, 0, 1)), pictures)


def test_headers() -> None:
    assert answer_headers(answer(None, None)) == {
        "X-Request-Id": "r",
        "X-Seed": "3, 4",
        "X-Model": "m",
        "Server-Timing": "queue;dur=1, encode;dur=0, base;dur=500, refine;dur=0, decode;dur=0, "
        "total;dur=1000",
        "Cache-Control": "no-store",
        "X-Image-Id": "i, j",
    }
    some_stored = answer_headers(answer(True, False, ids=("i", None)))
    assert "X-Image-Id" not in some_stored
    assert some_stored["X-Cache"] == "miss"


def test_warnings_are_one_line_of_ascii() -> None:
    assert "X-Warning" not in answer_headers(answer(None))
    one = CallWarning("prompt_truncated", "prompt", 'not read: "\r\nX-Evil: 1 \\ é"')
    two = CallWarning("unknown_field", "x", "y" * 2000)
    warned = replace(answer(None), warnings=(one, two))
    header = answer_headers(warned)["X-Warning"]
    assert header.startswith(r'prompt: not read: "\r\nX-Evil: 1 \\ \xe9"; x: yyyy')
    assert len(header) == 1000
    assert picture_response(warned).headers["x-warning"] == header


@pytest.mark.parametrize(
    ("answers", "header"),
    [
        ([(True,)], "hit"),
        ([(True, True), (True,)], "hit"),
        ([(True, False)], "miss"),
        ([(True,), (False,)], "miss"),
        ([(None,)], None),
        ([(True,), (None,)], None),
    ],
)
def test_whether_it_was_cached(answers: Any, header: str | None) -> None:
    expected = {} if header is None else {"X-Cache": header}
    assert cache_header([answer(*each) for each in answers]) == expected


def test_a_picture_as_the_response() -> None:
    response = picture_response(answer(True, True), {"X-Seed": "other", "X-More": "1"})
    assert (response.body, response.media_type) == (b"f0", "image/webp")
    assert (response.headers["x-seed"], response.headers["x-more"]) == ("other", "1")
    assert response.headers["x-model"] == "m"
    assert picture_response(answer(None)).headers["x-seed"] == "3"


def test_an_event() -> None:
    assert event("done", {"a": "ä\n"}) == b'event: done\ndata: {"a": "\\u00e4\\n"}\n\n'


# Bodies


@pytest.mark.parametrize(
    ("header", "read", "write"),
    [
        ("", True, True),
        ("no-cache", False, True),
        ("max-age = 0", False, True),
        ("max-age=1", True, True),
        ("no-store", True, False),
        ("NO-STORE, No-Cache", False, False),
        ("no-stored", True, True),
    ],
)
def test_cache_control(header: str, read: bool, write: bool) -> None:
    assert cache_control({"cache-control": header}) == CacheControl(read=read, write=write)
    assert cache_control({}) == CacheControl(read=True, write=True)


def test_fields_from_headers() -> None:
    headers = {"x-slo-ms": "5", "x-priority": "1", "x-other": "9"}
    assert with_headers({"a": 1}, headers) == {"a": 1, "slo_ms": "5", "priority": "1"}
    assert with_headers({"slo_ms": 7}, headers) == {"slo_ms": 7, "priority": "1"}
    assert with_headers([1], headers) == [1]
    for name, field in bodies.FIELD_HEADERS.items():
        assert field in GenerateParams.model_fields
        with pytest.raises(InvalidInput) as caught:
            with_headers({field: 1}, {name.lower(): "soon"})
        assert (caught.value.field, caught.value.value) == (field, "soon")
        assert caught.value.allowed.endswith(f"; it was sent as the header {name}")


def test_json() -> None:
    assert bodies.read_json(b"") == {}
    assert bodies.read_json(b" [1]") == [1]
    for wrong in (b"{" + b"x" * 90, b"NaN", b'{"a": Infinity}', b"\xff"):
        with pytest.raises(MalformedBody) as caught:
            bodies.read_json(wrong)
        shown = wrong[:80].decode("utf-8", "replace")
        assert (caught.value.field, caught.value.value) == ("body", shown)
        assert caught.value.allowed.startswith("JSON; this is wrong: ")


def test_limits() -> None:
    assert bodies.MAX_JSON_BYTES == 1 << 20
    assert bodies.MAX_BATCH_BYTES == 16 << 20
    assert bodies.MAX_UPLOAD_BYTES == 32 << 20
    assert bodies.MAX_BATCH_ITEMS == 256


def request_of(*chunks: bytes, messages: Sequence[dict[str, Any]] = (), **headers: str) -> Request:
    queue: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ] + [*messages]

    async def receive() -> dict[str, Any]:
        if not queue:
            await asyncio.Event().wait()
        return queue.pop(0)

    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def read(content_type: str | None, body: bytes) -> object:
    headers = {} if content_type is None else {"content_type": content_type}
    return await bodies.read_fields(request_of(body, **headers))


async def test_content_types() -> None:
    form = "application/x-www-form-urlencoded"
    assert await read(None, b'{"a": 1}') == {"a": 1}
    assert await read("Application/JSON ; charset=utf-8", b" ") == {}
    assert await read(form, b"a=1&b=x") == {"a": 1, "b": "x"}
    assert await read(form, b' {"a": 1}') == {"a": 1}
    with pytest.raises(MalformedBody):
        await read("application/json", b"a=1")
    for other in ("text/plain", ""):
        with pytest.raises(UnsupportedBody) as caught:
            await read(other, b"{}")
        assert (caught.value.field, caught.value.value) == ("Content-Type", other)
        assert caught.value.allowed == "application/json or multipart/form-data"


async def test_reading_a_call() -> None:
    headers = {"x_request_id": "r", "accept": "image/png, application/json"}
    request = request_of(b'{"prompt": "a"}', cache_control="no-store", x_priority="2", **headers)
    call = await bodies.read_call(request, 100)
    assert (call.request_id, call.wants_json, call.error) == ("r", True, None)
    assert call.fields == {"prompt": "a", "priority": "2"}
    assert (call.protocol, call.cache) == ("native", CacheControl(read=True, write=False))
    assert call.headers == {"priority": Sent("priority", "2", header="X-Priority")}
    call = await bodies.read_call(request_of(b"x" * 101), 100)
    assert isinstance(call.error, BodyTooLarge)
    assert (call.wants_json, call.fields) == (False, None)
    assert len(call.request_id) == 24
    call = await bodies.read_call(request_of(b"{}", x_request_id="a b"), 100)
    assert (call.request_id, type(call.error)) == ("invalid", InvalidInput)


def test_the_model_of_a_call() -> None:
    caller: Any = None
    assert Call("r", True, {"model": 5}, caller).model == 5
    assert Call("r", True, [1], caller).model is None
    validated = GenerateParams(prompt="a", model="b")
    call = Call("r", True, {"model": 5}, caller, validated=validated)
    assert call.model == "b"


# Forms


def multipart(**parts: tuple[str | None, bytes]) -> bytes:
    out = b""
    for name, (filename, data) in parts.items():
        file = f'; filename="{filename}"' if filename else ""
        out += f'--B\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        out += data + b"\r\n"
    return out + b"--B--\r\n"


async def read_form(body: bytes, max_part_size: int = 100) -> object:
    request = request_of(body, content_type="multipart/form-data; boundary=B")
    return await forms.read_multipart(request, max_part_size)


async def test_multipart() -> None:
    body = multipart(prompt=(None, b"1984"), seed=(None, b"5"), image=("a.png", b"5"))
    assert await read_form(body) == {"prompt": "1984", "seed": 5, "image": b"5"}
    many = {f"f{index}": ("x", b"y") for index in range(forms.MAX_FILES)}
    assert len(await read_form(multipart(**many))) == forms.MAX_FILES == 16  # type: ignore[arg-type]
    fields = {f"f{index}": (None, b"y") for index in range(forms.MAX_FIELDS)}
    assert len(await read_form(multipart(**fields))) == forms.MAX_FIELDS == 64  # type: ignore[arg-type]
    assert await read_form(multipart(a=(None, b"x" * 100))) == {"a": "x" * 100}


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        multipart(**{f"f{index}": ("x", b"y") for index in range(17)}),
        multipart(**{f"f{index}": (None, b"y") for index in range(65)}),
        multipart(a=(None, b"x" * 101)),
        b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n",
    ],
)
async def test_broken_forms(body: bytes) -> None:
    with pytest.raises(MalformedBody) as caught:
        await read_form(body)
    assert (caught.value.field, caught.value.value) == ("body", "a form")
    assert caught.value.allowed.startswith("multipart/form-data; ")


def test_names_with_brackets() -> None:
    assert forms.read_urlencoded(b"a[][b=1&[][c]=2&d[][e]x=3") == {
        "a[][b": 1,
        "[][c]": 2,
        "d[][e]x": 3,
    }
    for body in (b"a=5&a[][b]=1", b"a[][c]=1&a[][b]=1&a[][b]=2", b"a[][c]=1&a[][c]=2&a[][b]=1"):
        with pytest.raises(MalformedBody) as caught:
            forms.read_urlencoded(body)
        assert caught.value.allowed == "as many values of b as objects that have it"
    assert forms.read_urlencoded(b"prompt=%ff") == {"prompt": "�"}


# Callers


def test_ids() -> None:
    assert request_id_of({"x-request-id": "x" * 128}) == "x" * 128
    assert len(request_id_of({})) == 24
    with pytest.raises(InvalidInput) as caught:
        request_id_of({"x-request-id": "a b"})
    assert (caught.value.field, caught.value.value) == ("X-Request-Id", "a b")
    assert caught.value.allowed == ("1 to 128 letters, digits, dots, colons, dashes, underscores")


async def test_the_limit_of_a_body() -> None:
    for length in ("5", "many", "-9", ""):
        assert await limited(request_of(b"abcde", content_length=length), 5).body() == b"abcde"
    with pytest.raises(BodyTooLarge) as declared:
        limited(request_of(content_length="6"), 5)
    assert (declared.value.field, declared.value.value) == ("body", "6 bytes")
    with pytest.raises(BodyTooLarge) as seen:
        await limited(request_of(b"abc", b"def"), 5).body()
    assert (seen.value.value, seen.value.allowed) == ("over 5 bytes", "at most 5 bytes")


async def test_a_caller_leaves_only_by_a_disconnect() -> None:
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]
    request = request_of(messages=messages)

    async def work() -> None:
        await asyncio.sleep(5)

    with pytest.raises(errors.RequestCancelled, match="the client closed the connection"):
        await Caller(request.receive).wait_for(work(), 5)


async def test_a_caller_who_has_left_already() -> None:
    caller = Caller(request_of(messages=[{"type": "http.disconnect"}]).receive)
    await caller._left
    with pytest.raises(errors.RequestCancelled):
        await caller.wait_for(asyncio.sleep(5), 5)


# Errors


def detail(error: Exception, request_id: str | None = "r") -> Any:
    return error_body(error, request_id)["error"]


def test_bodies_of_errors() -> None:
    nothing = {"field": None, "value": None, "allowed": None, "request_id": "r"}
    assert detail(errors.Overloaded("full", 1.23456)) == nothing | {
        "type": "overloaded",
        "message": "full",
        "retry_after_s": 1.235,
    }
    assert detail(RuntimeError("secret")) == nothing | {
        "type": "internal_error",
        "message": "an unexpected error; the server's log has it",
    }
    assert detail(TimeoutError("late")) == nothing | {"type": "timeout_error", "message": "late"}
    assert detail(errors.OutOfMemory("big"))["type"] == "out_of_memory"
    assert detail(errors.OutOfMemory("x" * 3000))["message"] == "x" * 2000
    assert detail(errors.ModelNotFound("x", ["a", "b"])) == nothing | {
        "type": "model_not_found",
        "message": "no model named 'x'; available: a, b",
        "field": "model",
        "value": "x",
        "allowed": "one of: a, b",
    }
    assert detail(errors.RequestNotFound("x"))["allowed"] is None
    fields = {
        errors.ModelNotFound: "model",
        errors.AdapterNotFound: "loras",
        errors.ImageNotFound: "image_id",
        errors.RequestNotFound: "request_id",
    }
    for cls, field in fields.items():
        assert detail(cls("x"))["field"] == field


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1, 1),
        (0.5, 0.5),
        ("a", "a"),
        ([1], "[1]"),
        (b"\xff", "b'\\xff'"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 199 + "…"),
    ],
)
def test_values_in_errors(value: object, shown: object) -> None:
    assert detail(InvalidInput("f", value, "less"))["value"] == shown


def test_headers_of_errors() -> None:
    response = error_response(errors.NotReady("loading"))
    assert response.headers["retry-after"] == "2"
    assert "x-request-id" not in response.headers
    assert "retry-after" not in error_response(InvalidInput("f", 1, "less"), "r").headers
    assert error_response(errors.StoreUnavailable(), "r").headers["x-request-id"] == "r"


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (RuntimeError("bug"), "ERROR"),
        (errors.OutOfMemory("big"), "WARNING"),
        (TimeoutError("late"), "WARNING"),
        (errors.NotReady("loading"), None),
        (errors.Overloaded("full", 1), None),
        (InvalidInput("f", 1, "less"), None),
    ],
)
def test_what_is_logged(
    caplog: pytest.LogCaptureFixture, error: Exception, level: str | None
) -> None:
    logging.getLogger("bentoml").propagate = True
    assert logged(error, "r-1") is error
    records = [each for each in caplog.records if "r-1" in each.getMessage()]
    assert [each.levelname for each in records] == ([] if level is None else [level])
    assert all(bool(each.exc_info) == (level == "ERROR") for each in records)


ENVELOPES = {
    "/ui/x": {"detail": "m"},
    "/ui": {"error": {"type": "t", "message": "m"}},
    "/x/v1/models": {"error": {"type": "t", "message": "m"}},
    "/sdapi": {"error": {"type": "t", "message": "m"}},
    "/v1/models/a:explain": {"error": "m"},
    "/v1/models/a:predict/x": {
        "error": {"message": "m", "type": "invalid_request_error", "param": None, "code": "t"}
    },
    "/sdapi/x": {"error": "t", "detail": "m", "body": "", "errors": "m"},
}


@pytest.mark.parametrize("path", ENVELOPES)
def test_envelopes(path: str) -> None:
    error: Any = {"type": "t", "message": "m"}
    assert envelopes.envelope_of(path)(error, 404) == ENVELOPES[path]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
        (504, "server_error"),
    ],
)
def test_types_of_openais_errors(status: int, kind: str) -> None:
    error: Any = {"type": "t", "message": "m", "field": "f"}
    assert envelopes.openai(error, status)["error"] == {
        "message": "m",
        "type": kind,
        "param": "f",
        "code": "t",
    }


# The middleware


def answering(status: int, body: Any, path: str = "/x") -> Any:
    """What a client gets where the app answers with this."""

    async def respond(request: Request) -> Response:
        headers = {"X-Kept": "1"}
        if isinstance(body, str):
            return PlainTextResponse(body, status, headers=headers)
        return JSONResponse(body, status, headers=headers)

    app = Starlette(routes=[Route("/{rest:path}", respond)])
    app.add_middleware(ErrorBodies)
    answer = TestClient(app).get(path, headers={"X-Request-Id": "r"})
    assert answer.status_code == status
    assert answer.headers["x-kept"] == "1"
    assert int(answer.headers["content-length"]) == len(answer.content)
    if status >= 400:
        assert answer.headers.get_list("content-type") == ["application/json"]
    return answer.json() if status >= 400 else answer.text


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(400, "malformed_body"), (404, "not_found"), (405, "method_not_allowed")],
        *[(413, "body_too_large"), (415, "unsupported_body"), (429, "overloaded")],
        *[(503, "unavailable"), (504, "timeout_error"), (500, "internal_error")],
        *[(502, "internal_error"), (418, "invalid_input")],
    ],
)
def test_errors_of_others(status: int, kind: str) -> None:
    assert answering(status, "text ")["error"] == {
        "type": kind,
        "message": "text",
        "field": None,
        "value": None,
        "allowed": None,
        "request_id": "r",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "Bad Request"),
        ({"error": "a"}, "a"),
        ({"detail": "b"}, "b"),
        ({"error": "", "detail": "b"}, "b"),
        ([{"error": "c"}], "c"),
        ([{"detail": "d"}, 5], "d"),
        ([], "Bad Request"),
        ([5], "Bad Request"),
        (5, "Bad Request"),
        ("x" * 2001, "x" * 2000),
        ([{"error": "{}"}], "{}"),
    ],
)
def test_messages_of_others(body: Any, message: str) -> None:
    assert answering(400, body)["error"]["message"] == message


@pytest.mark.parametrize("wrapped", [False, True])
def test_our_errors_keep_their_fields(wrapped: bool) -> None:
    ours = error_body(InvalidInput("width", 3, "more"), "mine")
    body = [{"error": json.dumps(ours)}] if wrapped else ours
    assert answering(422, body) == ours
    assert answering(422, body, "/v2") == {"error": "width: got 3, allowed: more"}


def test_two_wrapped_errors_are_none_of_ours() -> None:
    ours = json.dumps(error_body(InvalidInput("width", 3, "more")))
    assert answering(422, [{"error": ours}, 5])["error"]["type"] == "invalid_input"
    assert answering(422, [{"error": ours}, 5])["error"]["field"] is None


def test_answers_below_400_are_left_alone() -> None:
    assert answering(399, "text") == "text"


async def test_what_is_no_http_is_left_alone() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    receive: Any = object()
    send: Any = object()
    await ErrorBodies(app)({"type": "lifespan"}, receive, send)
    assert seen == [({"type": "lifespan"}, receive, send)]


async def test_an_error_in_several_chunks() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.debug"})
        await send({"type": "http.response.body", "body": b"b"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "path": "/x", "headers": []}
    receive: Any = object()
    await ErrorBodies(app)(scope, receive, send)
    assert [each["type"] for each in sent] == [
        *("http.response.debug", "http.response.start", "http.response.body")
    ]
    assert json.loads(sent[2]["body"])["error"]["message"] == "ab"


def test_options_of_cors() -> None:
    assert cors_options(["https://a"]) == {
        "allow_origins": ["https://a"],
        "expose_headers": list(EXPOSED),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
    }
    shown = {"X-Cache", "X-Cut-From", "X-Warning", "Retry-After"}
    headers = {*shown, *answer_headers(answer(None))} - {"Cache-Control"}
    assert set(EXPOSED) == headers


# Progress


class Drawer:
    """An API whose calls go on until they are told to end."""

    def __init__(self, result: Any = None) -> None:
        self.end = asyncio.Event()
        self.cancelled = False
        self.result = result

    async def run(self, call: Any, task: str, on_progress: Any) -> Any:
        assert (call, task) == ("call", "refine")
        on_progress(Progress("r", 0, "base", 1, 2))
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        on_progress(Progress("r", 0, "base", 2, 2))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


async def collect(drawer: Any) -> list[Any]:
    call: Any = "call"
    return [each async for each in events_of(drawer, call, "refine")]


async def test_events_of_a_call() -> None:
    drawer = Drawer(answer(None))
    drawer.end.set()
    first, second, last = await collect(drawer)
    assert (first.step, second.step, last) == (1, 2, drawer.result)


async def test_events_of_a_call_that_fails() -> None:
    drawer = Drawer(InvalidInput("f", 1, "less"))
    drawer.end.set()
    assert (await collect(drawer))[-1] is drawer.result


async def test_nothing_happens_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl_bento.protocols.http.progress.KEEP_ALIVE_S", 0.01)
    drawer: Any = Drawer(answer(None))
    events = events_of(drawer, "call", "refine")  # type: ignore[arg-type]
    await anext(events)
    assert [await anext(events), await anext(events)] == [None, None]
    drawer.end.set()
    left = [each async for each in events]
    assert [type(each) for each in left if each is not None] == [Progress, Answer]


async def test_nothing_is_said_before_a_call_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life would begin the response with the status 200."""
    monkeypatch.setattr("sdxl_bento.protocols.http.progress.KEEP_ALIVE_S", 0.001)

    class Slow(Drawer):
        async def run(self, call: Any, task: str, on_progress: Any) -> Any:
            await asyncio.sleep(0.05)
            raise errors.Overloaded("full", 1)

    only: list[Any] = await collect(Slow())
    assert [type(each) for each in only] == [errors.Overloaded]


async def test_closing_the_events_ends_the_call() -> None:
    drawer: Any = Drawer()
    events = events_of(drawer, "call", "refine")  # type: ignore[arg-type]
    await anext(events)
    await events.aclose()
    await asyncio.sleep(0)
    assert drawer.cancelled


async def test_what_a_call_ended_with() -> None:
    async def work(result: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    async def ended(result: Any) -> Any:
        task = asyncio.create_task(work(result))
        await asyncio.wait([task])
        return task

    assert outcome(await ended(5)) == 5  # type: ignore[comparison-overlap]
    failed = InvalidInput("f", 1, "less")
    assert outcome(await ended(failed)) is failed

    class Fatal(BaseException):
        pass

    with pytest.raises(Fatal):
        outcome(await ended(Fatal()))


# Validation


@pytest.mark.parametrize(
    ("fields", "field", "value", "allowed"),
    [
        ({"prompt": "x" * 8001}, "prompt", "x" * 8001, "text of at most 8000 characters"),
        (
            {"target_size": [1, 2, 3]},
            "target_size",
            [1, 2, 3],
            "a list of 2 items, each an integer from 0 to 8192, or null",
        ),
        ({"loras": [{"name": ""}]}, "loras.0.name", "", "text of at most 200 characters"),
        ({"loras": [5]}, "loras.0", 5, "an object with name, scale"),
        ({"loras": 5}, "loras", 5, "a list of at most 8 items, each an object with name, scale"),
        (
            {"seed": 2**63 - 1, "num_images": 2},
            "seed",
            2**63 - 1,
            f"seed + num_images - 1 must be at most {2**63 - 1}",
        ),
        ({"refiner": None}, "refiner", None, "true or false"),
    ],
)
def test_validation(fields: dict[str, Any], field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_params({"prompt": "a"} | fields)
    error = caught.value
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_the_bounds_of_this_server_are_told() -> None:
    rules = Rules.of(Settings(max_steps=50, max_images=3), (32, 256))
    for field, allowed in (
        ("width", "an integer from 64 to 256, or null"),
        ("num_images", "an integer from 1 to 3"),
        ("num_inference_steps", "an integer from 1 to 50"),
        ("priority", "an integer from -10 to 10"),
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_params({"prompt": "a", field: 10**6}, rules)
        assert caught.value.allowed == allowed
    assert Rules.of(Settings()).bounds["num_images"] == (0, 8)


def test_unknown_fields() -> None:
    names = ", ".join(GenerateParams.model_fields)
    for name, near in (("stepz", ""), ("widht", "width (the nearest), or ")):
        with pytest.raises(InvalidInput) as caught:
            parse_params({"prompt": "a", name: 1})
        assert (caught.value.field, caught.value.value) == (name, 1)
        assert caught.value.allowed == f"{near}one of the fields {names}"
    with pytest.raises(InvalidInput) as caught:
        parse_params({"prompt": "a", "loras": [{"name": "a", "weight": 1}]})
    assert caught.value.field == "loras.0.weight"
    assert caught.value.allowed == "one of the fields name, scale"
    with pytest.raises(
        InvalidInput, match=r"loras\.0\.scal: got 1, allowed: scale \(the nearest\)"
    ):
        parse_params({"prompt": "a", "loras": [{"name": "a", "scal": 1}]})
