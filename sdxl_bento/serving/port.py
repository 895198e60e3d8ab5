"""The port of the server: is it free, and if not, who has it?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any

import click
import psutil

from sdxl_bento.errors import ConfigurationError

_MOST_CHARS = 100


def require_free_port_of_command() -> None:
    """If this process is `bentoml serve`, check that nobody else listens on its port.

    Raises ConfigurationError as `require_free` does.
    """
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return
    host, port = command.params.get("host"), command.params.get("port")
    if host and port:
        require_free(host, port)


def require_free(host: str, port: int) -> None:
    """Raise ConfigurationError, which says who holds it, if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(_what_to_do(host, port, error)) from None


def _what_to_do(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        remedy = (
            f"end it, or choose another port, as in --port {port + 1 if port < 65535 else 3000}"
        )
        return f"port {port} of {host} is already in use by {_holders(port)}; {remedy}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; choose another with --host"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} may not be used by this user; choose one above 1023"
    return f"port {port} of {host} cannot be used: {error.strerror}"


def _holders(port: int) -> str:
    """The processes that listen on a port, in words."""
    try:
        found = _listening(psutil.net_connections("tcp"), port)
    except (psutil.Error, OSError):
        found = set()
    pids = sorted({_first_of(pid, port) for pid in found if pid is not None})
    return " and ".join(map(_described, pids)) or "a process of another user"


def _listening(connections: Iterable[Any], port: int) -> set[int | None]:
    """The processes of the connections that listen on the port; a process itself is None."""
    return {
        getattr(each, "pid", None)
        for each in connections
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }


def _first_of(pid: int, port: int) -> int:
    """The ancestor from which a process has its socket: a worker has it from its supervisor."""
    try:
        parent = psutil.Process(pid).parent()
        if parent is not None and _listening(parent.net_connections("tcp"), port):
            return _first_of(parent.pid, port)
    except psutil.Error:
        pass
    return pid


def _described(pid: int) -> str:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    shown = command if len(command) <= _MOST_CHARS else command[: _MOST_CHARS - 1] + "…"
    return f"process {pid} ({shown})" if shown else f"process {pid}"
