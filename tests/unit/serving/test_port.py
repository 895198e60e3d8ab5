"""What is said of a port that cannot be listened on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import click
import psutil
import pytest

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.serving import port as module
from sdxl_bento.serving.port import require_free


def test_who_holds_a_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        require_free("127.0.0.1", 0)
        taken.listen()
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ConfigurationError) as caught:
                require_free(host, port)
            said = str(caught.value)
            assert said.startswith(f"port {port} of {host} is already in use by process")
            assert f"process {os.getpid()} (" in said
            assert f"--port {port + 1}" in said
    require_free("127.0.0.1", port)


@pytest.mark.parametrize(("command", "asked"), [("serve", True), ("build", False), (None, False)])
def test_only_the_command_that_serves_needs_the_port(
    monkeypatch: pytest.MonkeyPatch, command: str | None, asked: bool
) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(module, "require_free", lambda *where: seen.append(where))
    if command is None:
        module.require_free_port_of_command()
    else:
        with click.Context(click.Command("serve"), info_name=command) as context:
            context.params = {"host": "127.0.0.1", "port": 3000}
            module.require_free_port_of_command()
    assert seen == [("127.0.0.1", 3000)] * asked


def test_a_holder_that_may_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    assert module._holders(1) == "a process of another user"


def test_a_supervisor_is_named_instead_of_its_workers() -> None:
    """They inherit its socket, and the system names any one of them."""
    program = "import sys; print(flush=True); sys.stdin.read()"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[taken.fileno()],
        ) as worker:  # fmt: skip
            assert worker.stdout is not None
            worker.stdout.readline()
            assert module._first_of(worker.pid, port) == os.getpid()
            assert module._holders(port).startswith(f"process {os.getpid()} (")
            worker.communicate()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{host} .*--host|cannot be used"):
        require_free(host, 3000)
