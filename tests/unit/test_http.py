"""Errors to statuses and bodies, limits of bodies, and leaving callers."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sdxl_bento import errors
from sdxl_bento.pictures.decode import ImageTooLarge
from sdxl_bento.protocols.http.caller import (
    Caller,
    declared_length,
    limited,
    request_id_of,
)
from sdxl_bento.protocols.http.cross_origin import CrossOriginProtection
from sdxl_bento.protocols.http.errors import (
    STATUS,
    BodyTooLarge,
    CrossOrigin,
    MalformedBody,
    UnsupportedBody,
    error_body,
    error_response,
    status_of,
)
from sdxl_bento.protocols.http.middleware import ErrorBodies, Failures
from sdxl_bento.protocols.http.validation import parse_params


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MalformedBody("body", "{", "JSON"), 400),
        (UnsupportedBody("Content-Type", "text/csv", "application/json"), 415),
        (BodyTooLarge("body", "9 bytes", "at most 5 bytes"), 413),
        (ImageTooLarge("image", "9x9", "at most 50 pixels"), 413),
        (CrossOrigin("Origin", "https://other.example", "this server's own pages"), 403),
        (errors.InvalidInput("width", 3, "a multiple of 8"), 422),
        (errors.AdapterMismatch("x", ["key"], "rank"), 422),
        (errors.ModelNotFound("x"), 404),
        (errors.AdapterNotFound("x"), 404),
        (errors.ImageNotFound("x"), 404),
        (errors.RequestNotFound("x"), 404),
        (errors.NotReady("loading"), 503),
        (errors.Overloaded("full", 3.0), 429),
        (errors.DeadlineInfeasible(1.0, 2.0, 3.0), 503),
        (errors.RequestCancelled("gone"), 409),
        (errors.RequestFailed("broken"), 500),
        (errors.NumericalError("NaN"), 500),
        (errors.OutOfMemory("too much"), 500),
        (errors.EngineDead("dead"), 503),
        (errors.ConfigurationError("wrong"), 500),
        (TimeoutError("late"), 504),
        (RuntimeError("bug"), 500),
    ],
)
def test_status(error: Exception, status: int) -> None:
    assert status_of(error) == status
    response = error_response(error, "id-1")
    assert response.status_code == status
    assert response.headers["x-request-id"] == "id-1"
    body = json.loads(response.body)["error"]
    assert {"type", "message", "field", "value", "allowed", "request_id"} <= body.keys()


def test_every_exception_of_the_package_has_a_status() -> None:
    members = inspect.getmembers(errors, inspect.isclass)
    ours = [cls for _, cls in members if issubclass(cls, Exception)]
    assert len(ours) > 15
    for cls in ours:
        nearest = next(base for base in cls.__mro__ if base in STATUS)
        assert nearest is not Exception, cls


def test_invalid_input_names_field_value_and_what_is_allowed() -> None:
    body = error_body(errors.InvalidInput("width", 100, "a multiple of 8"), "r")["error"]
    assert body == {
        "type": "invalid_input",
        "message": "width: got 100, allowed: a multiple of 8",
        "field": "width",
        "value": 100,
        "allowed": "a multiple of 8",
        "request_id": "r",
    }


def test_not_found_lists_what_there_is() -> None:
    body = error_body(errors.AdapterNotFound("stripe", ["outlined", "striped"]))["error"]
    assert body["field"] == "loras"
    assert body["value"] == "stripe"
    assert body["allowed"] == "one of: outlined, striped"


def test_a_long_value_is_cut() -> None:
    body = error_body(errors.InvalidInput("prompt", "x" * 10_000, "less"))["error"]
    assert len(body["value"]) == 200
    assert len(body["message"]) < 200


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.2, "2"), (3.0, "3"), (59.01, "60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    assert error_response(errors.Overloaded("full", seconds)).headers["retry-after"] == header


def test_an_unexpected_error_keeps_its_text_to_itself() -> None:
    assert "secret" not in json.dumps(error_body(RuntimeError("secret")))


def test_request_id() -> None:
    assert request_id_of({"x-request-id": "a.B-1:2_3"}) == "a.B-1:2_3"
    assert request_id_of({}) != request_id_of({})
    for bad in ("", "a b", "x" * 129, "a\n", "ä", "../x"):
        with pytest.raises(errors.InvalidInput, match="X-Request-Id"):
            request_id_of({"x-request-id": bad})


def _request(chunks: list[bytes], headers: dict[str, str] | None = None) -> Request:
    queue = list(chunks)

    async def receive() -> dict[str, Any]:
        body = queue.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(queue)}

    raw = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def test_body_within_its_limit() -> None:
    assert await limited(_request([b"abc", b"de"]), 5).body() == b"abcde"


async def test_body_over_its_limit_without_a_length() -> None:
    with pytest.raises(BodyTooLarge, match="at most 4 bytes"):
        await limited(_request([b"abc", b"de"]), 4).body()


def test_body_that_says_it_is_over_its_limit_is_not_read() -> None:
    with pytest.raises(BodyTooLarge, match="got '5 bytes'"):
        limited(_request([], {"content-length": "5"}), 4)


async def _stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def _leaves() -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"type": "http.disconnect"}


async def _work(ended: list[str], seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        ended.append("cancelled")
        raise
    return "done"


async def test_work_for_a_caller_who_stays() -> None:
    assert await Caller(_stays).wait_for(_work([], 0), 5) == "done"


async def test_work_is_cancelled_when_its_caller_leaves() -> None:
    ended: list[str] = []
    with pytest.raises(errors.RequestCancelled):
        await Caller(_leaves).wait_for(_work(ended, 5), 5)
    assert ended == ["cancelled"]


async def test_work_is_cancelled_when_it_takes_too_long() -> None:
    ended: list[str] = []
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        await Caller(_stays).wait_for(_work(ended, 5), 0.01)
    assert ended == ["cancelled"]


async def test_work_is_cancelled_with_the_task_that_awaits_it() -> None:
    ended: list[str] = []
    task = asyncio.create_task(Caller(_stays).wait_for(_work(ended, 5), 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]


async def test_an_error_of_the_work_comes_through() -> None:
    async def fails() -> None:
        raise errors.OutOfMemory("too much")

    with pytest.raises(errors.OutOfMemory):
        await Caller(_stays).wait_for(fails(), 5)


async def _answer(request: Request) -> Response:
    kind = request.query_params["kind"]
    if kind == "bentoml":
        return JSONResponse([{"error": "it is wrong"}], 400)
    if kind == "wrapped":
        return JSONResponse([{"error": json.dumps({"error": {"type": "ours"}})}], 422)
    if kind == "ours":
        return JSONResponse({"error": {"type": "ours"}}, 404)
    if kind == "text":
        return PlainTextResponse("Service is not ready", 503)
    return JSONResponse([{"error": "fine"}])


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = Starlette(routes=[Route("/", _answer)])
    app.add_middleware(ErrorBodies)
    return TestClient(app)


def test_errors_of_others_get_our_body(client: TestClient) -> None:
    answer = client.get("/?kind=bentoml", headers={"X-Request-Id": "r1"})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "type": "malformed_body",
        "message": "it is wrong",
        "field": None,
        "value": None,
        "allowed": None,
        "request_id": "r1",
    }
    assert client.get("/?kind=text").json()["error"]["message"] == "Service is not ready"
    assert client.get("/nowhere").json()["error"]["type"] == "not_found"
    assert client.post("/").json()["error"]["type"] == "method_not_allowed"


def test_our_own_errors_are_left_alone(client: TestClient) -> None:
    assert client.get("/?kind=ours").json() == {"error": {"type": "ours"}}
    assert client.get("/?kind=wrapped").json() == {"error": {"type": "ours"}}


def test_answers_that_are_no_errors_are_left_alone(client: TestClient) -> None:
    assert client.get("/?kind=fine").json() == [{"error": "fine"}]


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.0, "1"), (1.001, "2"), (3.2, "4")])
def test_whoever_waits_as_told_is_not_too_early(seconds: float, header: str) -> None:
    assert error_response(errors.Overloaded("full", seconds)).headers["Retry-After"] == header


@pytest.mark.parametrize(("before", "status"), [("", 500), ("start", None), ("start and end", 200)])
async def test_what_routes_raise_is_answered(
    before: str, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if before:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if "end" in before:
            await send({"type": "http.response.body", "body": b""})
        raise RuntimeError("a bug")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-request-id", b"r")],
    }
    answer = Failures(app)(scope, send, send)
    if status is None:  # the connection has to be closed
        with pytest.raises(RuntimeError):
            await answer
    else:
        await answer
        assert sent[0]["status"] == status
    assert caplog.text.count("request r failed") == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (10**5000, "an integer of 16610 bits"),
        (2**63, 2**63),
        ({"b": 1, "a": [None]}, "{'b': 1, 'a': [None]}"),
        ([[["x" * 10**7]] * 10**6], "[[['" + "x" * 195 + "…"),
    ],
    ids=["infinite", "nan", "huge", "large", "an object", "a list"],
)
def test_any_value_can_be_shown(value: object, shown: object) -> None:
    error = errors.InvalidInput("f", value, "less")
    assert error_body(error)["error"]["value"] == shown
    json.dumps(error_body(error), allow_nan=False)


def test_too_many_fields_are_no_error_each() -> None:
    with pytest.raises(errors.InvalidInput, match="at most 128 fields"):
        parse_params({str(index): 1 for index in range(30_000)})


@pytest.mark.parametrize("digits", ["²", "９", "1_0", "9" * 21, ""])
def test_lengths_that_are_none(digits: str) -> None:
    assert declared_length({"content-length": digits}) is None
    assert declared_length({"content-length": "10"}) == 10


def test_origins_that_are_no_address_are_refused() -> None:
    app = CrossOriginProtection(PlainTextResponse("in"))
    for origin in ("http://[", "http://a:x", "//", "\xff"):
        answer = TestClient(app).post("/", headers=[(b"origin", origin.encode("latin-1"))])
        assert answer.status_code == 403
