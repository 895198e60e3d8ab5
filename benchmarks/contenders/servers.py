"""Starting and ending the contenders: fresh processes on the loopback device, same settings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_S = 240.0
STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve. `batched` ones take a list of requests in a call; `env` is on top."""

    name: str
    title: str
    command: tuple[str, ...]
    batched: bool = False
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    contender: Contender
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def contenders(tag: str) -> list[tuple[Contender, int]]:
    """All of them, each with the port it will listen on."""
    ports = free_ports(4)
    python = sys.executable
    plain = (python, "-m", "benchmarks.contenders.plain", tag, str(ports[0]))
    bento = (python, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port")
    whole = (*bento, str(ports[1]), "benchmarks.contenders.whole_requests:WholeRequests")
    ours = (*bento, str(ports[2]), ".")
    fcfs = (*bento, str(ports[3]), ".")
    # Who is due so soon after arrival is due in the order of arrival.
    in_order = (("SDXL_AGEING_S", "0.001"),)
    found = [
        Contender("plain", "(a) diffusers, one at a time", plain),
        Contender("whole", "(b) batches of whole requests", whole, batched=True),
        Contender("ours", "(c) batches of steps (ours)", ours),
        Contender("fcfs", "(c) with its scheduling taken out", fcfs, env=in_order),
    ]
    return list(zip(found, ports, strict=True))


@contextmanager
def serve_all(tag: str, lora_dir: Path, logs: Path, threads: int) -> Iterator[dict[str, Server]]:
    """Start them one after the other (so that none's start slows another's) and end them all."""
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "SDXL_THREADS": str(threads),
        "SDXL_MODEL": tag,
        "SDXL_DEVICE": "cpu",
        "SDXL_DTYPE": "fp32",
        "SDXL_LORA_DIR": str(lora_dir),
        "SDXL_TIMEOUT_S": "900",
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with ExitStack() as stack:
        servers = {}
        for contender, port in contenders(tag):
            server = stack.enter_context(serve(contender, port, variables, logs))
            servers[contender.name] = server
        yield servers


@contextmanager
def serve(
    contender: Contender, port: int, variables: Mapping[str, str], logs: Path
) -> Iterator[Server]:
    log = logs / f"{contender.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            contender.command,
            cwd=ROOT,
            env={**variables, **dict(contender.env)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(contender, f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        _end(process)


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ready(server.url):
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            log = server.log.read_text("utf-8", "replace")[-4000:]
            raise RuntimeError(f"{server.contender.title} did not start:\n{log}")
        time.sleep(0.2)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
