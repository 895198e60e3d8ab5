"""Who may send what: Go's rule for requests from other origins' pages."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sdxl_bento.protocols.http.cross_origin import CrossOriginProtection, cors_options
from sdxl_bento.protocols.http.middleware import ErrorBodies

HOST = "http://testserver"
OTHER = "https://other.example"


async def _answer(request: Request) -> Response:
    return PlainTextResponse("done", headers={"X-Seed": "5"})


def client(*trusted: str) -> TestClient:
    middleware = [
        Middleware(ErrorBodies),
        Middleware(CrossOriginProtection, trusted=trusted),
    ]
    if trusted:
        middleware.insert(0, Middleware(CORSMiddleware, **cors_options(trusted)))
    route = Route("/{path:path}", _answer, methods=["GET", "POST"])
    return TestClient(Starlette(routes=[route], middleware=middleware))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"Origin": HOST}, 200),
        ({"Origin": OTHER}, 403),
        ({"Origin": f"{HOST}:8080"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "anything"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": HOST}, 403),
        # A proxy that changes Host: the browser's word counts.
        ({"Sec-Fetch-Site": "same-origin", "Origin": OTHER}, 200),
    ],
)
def test_who_may_send(headers: dict[str, str], status: int) -> None:
    assert client().post("/generate", headers=headers).status_code == status
    assert client().get("/images/x", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/generate", ("error", "type")),
        ("/v1/images/generations", ("error", "code")),
        ("/sdapi/v1/txt2img", ("error",)),
    ],
)
def test_the_error_is_the_protocols_own(path: str, name: tuple[str, ...]) -> None:
    body = client().post(path, headers={"Origin": OTHER}).json()
    for part in name:
        body = body[part]
    assert body == "cross_origin"


def test_the_error_says_how_to_let_it_in() -> None:
    error = client().post("/v2/models/a/infer", headers={"Origin": OTHER}).json()["error"]
    assert OTHER in error
    assert "SDXL_CORS_ORIGINS" in error


def test_a_trusted_origin_may_send_and_read() -> None:
    page = {"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}
    answer = client(OTHER).post("/generate", headers=page)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == OTHER
    assert "X-Seed" in answer.headers["access-control-expose-headers"]
    asked = {**page, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "content-type, x-slo-ms"
    assert client(OTHER).options("/generate", headers=asked).status_code == 200
    third = {"Origin": "https://third.example"}
    refused = client(OTHER).post("/generate", headers=third)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def test_any_origin_may_be_trusted() -> None:
    answer = client("*").post("/generate", headers={"Origin": OTHER})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
