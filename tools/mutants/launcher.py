"""Start `python -m …` by a fork of a process that has imported the heavy packages.

Tests start servers and commands with `sys.executable`. Each would import torch and BentoML again,
for several seconds; so in a run of tests `sys.executable` is a small script (`CLIENT`) that hands
its arguments, environment and open files to a launcher. That forks, runs the module in the fork,
and lets the script know how it ended. The script passes signals on, so it can be stopped, awaited
and killed like the process that it stands for. Whatever is not listed in `MODULES` runs as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = ("bentoml", "_bentoml_impl", "sdxl_bento", "export")
MOST_FILES = 64
ABOVE = 200  # descriptors that are out of the way of those that a process is given
LENGTH = 8  # bytes of a number on the wire
POLL_S = 0.02

CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys
arguments = sys.argv[1:]
if arguments[:1] != ["-m"] or arguments[1].partition(".")[0] not in {modules}:
    os.execv("{python}", ["{python}", *arguments])
files = [int(name) for name in os.listdir("/proc/self/fd")]
files = [file for file in files if os.path.exists(f"/proc/self/fd/{{file}}")]
launcher = socket.socket(socket.AF_UNIX)
launcher.connect("{address}")
request = dict(arguments=arguments, environment=dict(os.environ), cwd=os.getcwd(), files=files)
body = json.dumps(request).encode()
socket.send_fds(launcher, [len(body).to_bytes({length}, "little")], files)
launcher.sendall(body)
pid = int.from_bytes(launcher.recv({length}, socket.MSG_WAITALL), "little")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
ended = launcher.recv({length}, socket.MSG_WAITALL)
status = int.from_bytes(ended, "little", signed=True) if ended else 1
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@dataclass(frozen=True)
class Started:
    """A process and the connection to the script that stands for it."""

    pid: int
    connection: socket.socket


def start(folder: Path) -> None:
    """Fork a launcher, and let `sys.executable` be its script from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    address, script = folder / "launcher", folder / "python"
    address.unlink(missing_ok=True)
    script.write_text(
        CLIENT.format(python=sys.executable, modules=MODULES, address=address, length=LENGTH)
    )
    script.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()
    sys.executable = str(script)
    if os.fork() == 0:
        try:
            _serve(listener)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    listener.close()


def _serve(listener: socket.socket) -> None:
    running: list[Started] = []
    while True:
        watched = [listener, *(started.connection for started in running)]
        ready, _, _ = select.select(watched, [], [], POLL_S if running else None)
        for started in list(running):
            pid, wait_status = os.waitpid(started.pid, os.WNOHANG)
            if pid:
                _end(started, os.waitstatus_to_exitcode(wait_status))
                running.remove(started)
            elif started.connection in ready:  # its script was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(started.pid, signal.SIGKILL)
        if listener in ready:
            running.append(_accept(listener, running))


def _end(started: Started, status: int) -> None:
    with contextlib.suppress(OSError):
        started.connection.sendall(status.to_bytes(LENGTH, "little", signed=True))
    started.connection.close()


def _accept(listener: socket.socket, running: list[Started]) -> Started:
    connection, _ = listener.accept()
    head, files, _, _ = socket.recv_fds(connection, LENGTH, MOST_FILES)
    body = connection.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
    pid = os.fork()
    if pid == 0:
        for own in (listener, connection, *(started.connection for started in running)):
            own.close()
        _become(json.loads(body), files)
    for file in files:
        os.close(file)
    connection.sendall(pid.to_bytes(LENGTH, "little"))
    return Started(pid, connection)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Be the process that was asked for; never returns."""
    status: object = 1
    try:
        _place(files, request["files"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        _, module, *arguments = request["arguments"]
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [request["cwd"], *filter(None, given), *sys.path]
        sys.argv[:] = [module, *arguments]
        sys.orig_argv[:] = [sys.executable, *request["arguments"]]
        importlib.invalidate_caches()
        importlib.import_module("tools.mutants.tracing").start_if_asked()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        traceback.print_exc()
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _place(files: list[int], numbers: list[int]) -> None:
    """Let `files` have the given numbers, and be inherited."""
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, ABOVE) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, numbers, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)
