"""A real `bentoml serve` process on a free port of the loopback device."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
FAKED = "tests.support.faked_service:SDXLService"


def faked_environment(home: Path, **fake: object) -> dict[str, str]:
    """For serving FAKED: a BENTOML_HOME at `home` that holds a model which nothing opens."""
    from bentoml._internal.models import ModelStore
    from bentoml.models import create

    (home / "models").mkdir(parents=True)
    with create("stub:1", _model_store=ModelStore(home / "models")):
        pass
    variables = {name: str(value) for name, value in fake.items()}
    return {"BENTOML_HOME": str(home), "SDXL_MODEL": "stub:1", **variables}


@dataclass
class Server:
    """A running server: its address, its process and what it has printed."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def status(self, path: str) -> int | None:
        """The status of a GET, or None while nothing listens."""
        try:
            return httpx.get(self.url + path, timeout=10).status_code
        except httpx.TransportError:
            return None

    def wait_for(self, path: str, status: int, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while (seen := self.status(path)) != status:
            assert self.process.poll() is None, f"the server has ended:\n{self.output()}"
            # The supervisor would start the worker again and again.
            assert "startup failed" not in self.output(), self.output()
            assert time.monotonic() < deadline, f"{path} is {seen}:\n{self.output()}"
            time.sleep(0.1)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 60) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not end:\n{self.output()}") from None


@contextmanager
def serve(
    target: str,
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    ready: bool = True,
    port: int | None = None,
) -> Iterator[Server]:
    """Serve `target`, wait until it is ready unless told not to, and end it by its pid."""
    port = port or _free_port()
    command = [sys.executable, "-m", "bentoml", "serve", target]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    variables = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **(env or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            server.wait_for("/readyz", 200)
        yield server
    finally:
        if process.poll() is None:
            server.terminate()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
