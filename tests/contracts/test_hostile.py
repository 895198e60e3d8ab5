"""Requests that harm others, sent to a real server."""

from __future__ import annotations

import re
import socket
import time

import httpx
import pytest

from benchmarks.attacks import ATTACKS, Site
from benchmarks.attacks.attack import run
from tests.contracts.conftest import until_idle
from tests.support.server import Server

MARK = "Mk7Zq"
# The kinds of `benchmarks.abuse` that need no model, no measured costs, and no half minute.
QUICK = (
    *("numbers", "headers", "nesting", "tensors", "too-large", "unknown-fields", "bombs"),
    *("unknown-paths", "never-fitting"),
)


def sent(server: Server, data: bytes, timeout_s: float = 10) -> bytes:
    """The answer to raw bytes, until the server ends the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as raw:
        raw.sendall(data)
        answer = b""
        try:
            while piece := raw.recv(65_536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def request(*headers: bytes, path: bytes = b"/generate", body: bytes = b"{}") -> bytes:
    length = [b"Content-Length: %d" % len(body)] if not any(b"ength:" in h for h in headers) else []
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", *length, *headers]
    return b"\r\n".join([*lines, b"", body])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(b"Content-Type: application/json\x80"), 400),
        (request(b"Content-Type: application/json; x=\xff"), 400),
        (request(b"Content-Length: " + b"9" * 5000), 400),
        (request("Content-Length: ²".encode("latin-1")), 400),
        (request(b"Content-Length: 1000000000"), 413),
        (request(b"Transfer-Encoding: chunked", body=b"zz\r\n"), 400),
        (request(b"User-Agent: \\x\xff", b"traceparent: \\x\xff", b"Cookie: \xff"), 422),
        (request(b"Origin: http://["), 403),
        (request(b"X-SLO-MS: nan", body=b'{"prompt": "a"}'), 422),
        (request(body=b'{"prompt": "a", "width": 1e999}'), 422),
        (request(b"Inference-Header-Content-Length: \xb2", path=b"/v2/models/fake/infer"), 400),
        (request(path=b"/cancel/%0a" + MARK.encode()), 404),
        (b"GET /models HTTP/1.1\r\nHost: [\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 300_000 + b"\r\n\r\n", 400),
    ],
)
def test_each_is_answered(faked: Server, data: bytes, status: int) -> None:
    answer = sent(faked, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert httpx.get(f"{faked.url}/livez").status_code == 200


@pytest.mark.parametrize("kind", QUICK)
async def test_each_kind_of_abuse_is_held(faked: Server, kind: str) -> None:
    async with httpx.AsyncClient(base_url=faked.url, timeout=60) as http:
        result = await run(ATTACKS[kind], Site(faked.url, "fake", http), seconds=0.2, seed=1)
    assert result.tried >= ATTACKS[kind].clients
    assert result.held == result.tried, result.surprises


def test_a_large_body_is_refused_before_it_is_sent(faked: Server) -> None:
    begin = time.monotonic()
    answer = sent(faked, request(b"Content-Length: 1000000000", body=b"x" * 100_000))
    assert b"at most 1048576 bytes" in answer
    assert time.monotonic() - begin < 8


def test_nothing_that_callers_wrote_is_told(faked: Server) -> None:
    made = httpx.post(f"{faked.url}/generate", json={"prompt": f"quick {MARK}"})
    image_id = made.headers["x-image-id"]
    assert httpx.get(f"{faked.url}/images/{image_id}").status_code == 200
    for index in range(50):
        httpx.get(f"{faked.url}/{MARK}{index}", headers={"Content-Type": MARK})
    for body in (f'{{"{MARK}', f'{{"requests": ["{MARK}"]}}', f'{{"requests": {{"{MARK}": 1}}}}'):
        for path in ("/generate_batch", "/generate", "/v1/models/fake:predict"):
            httpx.post(faked.url + path, content=body, headers={"Content-Type": MARK})
            httpx.post(faked.url + path, content=body)
    httpx.post(f"{faked.url}/generate", json={"prompt": "bug"})
    text = httpx.get(f"{faked.url}/metrics").text
    output = faked.output()
    assert "path=/images/{image_id}" in output
    assert "secret detail" in output or "RuntimeError" in output
    for secret in (MARK, image_id):
        assert secret not in output
        assert secret not in text
    endpoints = set(re.findall(r'endpoint="([^"]*)"', text))
    assert {"/generate", "/images/{image_id}", "other"} <= endpoints
    assert len(endpoints) < 60
    until_idle(faked)


def test_half_sent_bodies_are_no_calls(faked: Server) -> None:
    host, port = faked.url.removeprefix("http://").split(":")
    half = []
    try:
        for _ in range(700):
            raw = socket.create_connection((host, int(port)), timeout=10)
            raw.sendall(request(b"Content-Length: 99"))
            half.append(raw)
        for _ in range(3):
            answer = httpx.post(f"{faked.url}/generate", json={"prompt": "quick"}, timeout=20)
            assert answer.status_code == 200
        assert httpx.get(f"{faked.url}/stats").json()["running"] == 0
    finally:
        for raw in half:
            raw.close()
    text = httpx.get(f"{faked.url}/metrics").text
    turned_away = re.search(r'^sdxl_turned_away_total{reason="connections"} (\d+)', text, re.M)
    assert turned_away is not None
    assert int(turned_away[1]) >= 700 - 256
