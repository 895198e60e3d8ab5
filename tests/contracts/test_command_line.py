"""`sdxl-bento --url` against a real server: every error class, progress, leaving early."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from sdxl_bento.cli.app import app
from sdxl_bento.cli.remote import RemoteDrawer
from sdxl_bento.sampler_names import SAMPLERS
from sdxl_bento.serving.results import Progress
from tests.contracts.conftest import until_idle
from tests.support.command_line import command_line
from tests.support.server import Server

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a command writes, it writes here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SDXL_URL", raising=False)
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, prog_name="sdxl-bento")


def test_pictures(faked: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_URL", faked.url.removeprefix("http://"))
    done = run("generate", "quick", "-N", "2", "-s", "5", "--size", "128x64", "-o", "new/a.webp")
    assert (done.exit_code, done.stdout) == (0, "new/a-1.webp\nnew/a-2.webp\n")
    assert "seeds 5, 6 · 25 steps · euler · 128x64 · fake" in done.stderr
    with Image.open(folder / "new" / "a-2.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (128, 64))
    again = run("generate", "quick", "-s", "5", "--quiet", "--json")
    (image,) = json.loads(again.stdout)["images"]
    assert (image["path"], image["seed"], image["format"]) == ("quick-5.png", 5, "png")
    assert image["bytes"] == (folder / "quick-5.png").stat().st_size
    assert again.stderr == ""


def test_what_is_not_read_of_a_prompt_is_said(faked: Server, folder: Path) -> None:
    call = ("generate", "quick b c d unread e", "--url", faked.url)
    assert 'Warning: prompt: this is not read: "unread e"' in run(*call).stderr
    assert run(*call, "--quiet").stderr == ""
    (warning,) = json.loads(run(*call, "--json", "-q").stdout)["warnings"]
    assert (warning["type"], warning["field"]) == ("prompt_truncated", "prompt")


def test_image_to_image(faked: Server, folder: Path) -> None:
    Image.new("RGB", (96, 32)).save(folder / "in.png")
    for more in ((), ("--refine-only",)):
        done = run(
            "generate", "quick", "--image", "in.png", "-o", "-", "--url", faked.url, "-q", *more
        )
        assert done.exit_code == 0, done.stderr
        assert done.stdout_bytes.startswith(b"\x89PNG")
    (folder / "in.png").write_bytes(b"no picture")
    wrong = run("generate", "quick", "--image", "in.png", "--url", faked.url)
    assert wrong.exit_code == 3
    assert wrong.stderr.startswith("Error: image: got '10 bytes of something else'")


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "line"),
    [
        (["x", "-W", "100"], 3, "invalid_input", "width: got 100, allowed: a multiple of 8"),
        (["x", "--steps", "999"], 3, "invalid_input", "allowed: an integer from 1 to 150"),
        (["x", "--model", "none"], 4, "model_not_found", "no model named 'none'; available: fake"),
        (["x", "--lora", "none"], 4, "adapter_not_found", "available: striped"),
        (["full"], 5, "overloaded", "the queue is full: 64 requests wait (try again in 3.2 s)"),
        (["bug"], 1, "internal_error", "the server's log has it"),
    ],
)
def test_errors(faked: Server, arguments: list[str], code: int, kind: str, line: str) -> None:
    done = run("generate", *arguments, "--url", faked.url, "--json")
    assert done.exit_code == code
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["message"] in done.stderr) == (kind, True)
    assert done.stderr.startswith("Error: ")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(Path().iterdir())


def test_a_server_that_is_loading(loading: Server) -> None:
    done = run("generate", "x", "--url", loading.url)
    assert (done.exit_code, done.stdout) == (5, "")
    assert "Error: the engine is loading, not ready (try again in 2 s)" in done.stderr
    seen = run("doctor", "--url", loading.url)
    assert seen.exit_code == 1
    assert f"✘ server: {loading.url} is loading (/readyz: 503)" in seen.stdout


def test_lists(faked: Server) -> None:
    shown = {name: run(name, "--url", faked.url) for name in ("models", "loras", "samplers")}
    assert "fake:1" in shown["models"].stdout
    assert "striped" in shown["loras"].stdout
    assert shown["samplers"].stdout.split() == list(SAMPLERS)
    (model,) = json.loads(run("models", "--url", faked.url, "--json").stdout)["models"]
    assert (model["name"], model["default"], model["backend"]) == ("fake", True, "fake")
    seen = run("doctor", "--url", faked.url).stdout
    assert f"✔ server: {faked.url} is ready, 0 pictures running, 0 waiting" in seen


async def test_progress(faked: Server) -> None:
    seen: list[Progress] = []
    async with RemoteDrawer(faked.url) as server:
        drawn = await server.draw({"prompt": "quick", "seed": 3}, None, seen.append)
    assert [each.step for each in seen if each.stage == "base"] == [1, 2, 3, 4]
    assert {each.steps for each in seen if each.stage == "base"} == {4}
    assert drawn.files[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "number", "code", "said"),
    [
        (["generate", "slow"], signal.SIGINT, 130, "Interrupted.\n"),
        (["generate", "slow"], signal.SIGTERM, 143, ""),
        (["bench", "--warm-up", "0"], signal.SIGINT, 130, "Interrupted.\n"),
    ],
)
def test_to_end_it_cancels_on_the_server(
    faked: Server, folder: Path, arguments: list[str], number: signal.Signals, code: int, said: str
) -> None:
    with command_line([*arguments, "--url", faked.url]) as process:
        wait_until_running(faked)
        process.send_signal(number)
        out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (code, said)
    assert ("clients" in out) is (arguments[0] == "bench")
    until_idle(faked)
    assert not list(folder.iterdir())


def wait_until_running(server: Server) -> None:
    """Wait for a call of a process that has to start first."""
    deadline = time.monotonic() + 120
    while not httpx.get(f"{server.url}/stats").json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bench(faked: Server) -> None:
    done = run(
        "bench", "--url", faked.url, "--clients", "1,4", "--requests", "4", "--warm-up", "1",
        "--prompt", "quick", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    one, four = json.loads(done.stdout)["levels"]
    assert (one["clients"], one["pictures"], one["errors"]) == (1, 4, {})
    assert (four["clients"], four["pictures"]) == (4, 4)
    assert one["queue_s"]["p50"] == 0.001  # as the server has said
    assert one["latency_s"]["p50"] > 0
    table = run("bench", "--url", faked.url, "--clients", "2", "--requests", "2", "--warm-up", "0")
    assert table.exit_code == 0
    assert [word for word in table.stdout.split() if word.isdigit()][:2] == ["2", "2"]


def test_bench_of_errors(faked: Server) -> None:
    full = run("bench", "--url", faked.url, "--prompt", "full", "--requests", "3", "--clients", "1")
    assert full.exit_code == 5  # the warm-up tells it
    assert "the queue is full" in full.stderr
    done = run(
        "bench", "--url", faked.url, "--prompt", "full", "--requests", "3", "--clients", "1",
        "--warm-up", "0", "--json",
    )  # fmt: skip
    assert done.exit_code == 1
    assert json.loads(done.stdout)["levels"][0]["errors"] == {"overloaded": 3}


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for command in (["generate", "x"], ["models"], ["bench"]):
            done = run(*command, "--url", url, "--json")
            assert done.exit_code == 6, command
            assert json.loads(done.stdout)["error"]["type"] == "unreachable"
            assert done.stderr.startswith(f"Error: no server answers at {url}")


@contextmanager
def answering(status: int, body: bytes, kind: str = "text/html") -> Iterator[str]:
    """A server that has the same answer to everything; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (404, b"<html>"), (502, b""), (200, b"[1]"), (500, b'{"error": "text"}')],
)
def test_something_else_answers(status: int, body: bytes) -> None:
    with answering(status, body) as url:
        for command in (["models"], ["generate", "x", "--image", __file__]):
            done = run(*command, "--url", url)
            assert done.exit_code == 1, command
            assert "is it the right address?" in done.stderr
            assert len(done.stderr.splitlines()) == 1


STEP = b'event: step\ndata: {"request_id": "a", "index": 0, "stage": "base", "step": 1}\n\n'


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (STEP, 6, "ended the stream before the picture was done"),
        (b"", 6, "ended the stream before the picture was done"),
        (STEP + b"event: done\ndata: {\n\n", 1, "sends events of another kind"),
        (b"<html>", 6, "ended the stream before the picture was done"),
    ],
)
def test_a_stream_that_ends_too_soon(body: bytes, code: int, words: str) -> None:
    with answering(200, body, "text/event-stream") as url:
        done = run("generate", "x", "--url", url)
    assert done.exit_code == code
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert not list(Path().iterdir())
