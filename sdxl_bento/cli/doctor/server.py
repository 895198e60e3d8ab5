"""Checks of a running server: whether it is alive and ready, its version, its models."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from sdxl_bento import __version__
from sdxl_bento.cli.doctor.findings import Finding, good, problem, warning
from sdxl_bento.cli.failures import Failure
from sdxl_bento.cli.remote import CONNECT_S, get, unreachable

_WAIT = "wait until its models are loaded; its log says how far it is"


def server(url: str) -> Iterator[Finding]:
    """The server at `url`."""
    try:
        alive, ready = (_status(url, path) for path in ("/livez", "/readyz"))
        metadata = get(url, "/v2")
        stats, models = get(url, "/stats"), get(url, "/models")["models"]
    except Failure as failure:
        yield problem("server", str(failure), "start it: SDXL_MODEL=… bentoml serve")
        return
    state = f"{stats['state']}: {stats['state_reason']}".removesuffix(": ")
    if alive != 200:
        yield problem("server", f"{url} is {state} (/livez: {alive})", "restart it; see its log")
    elif stats["state"] == "damaged":
        yield problem("server", f"{url} is {state}", "restore the files, and restart it")
    elif ready != 200:
        yield problem("server", f"{url} is {state} (/readyz: {ready})", _WAIT)
    else:
        load = f"{stats['running']} pictures running, {stats['waiting']} waiting"
        yield good("server", f"{url} is {state}, {load}")
    theirs = metadata.get("version")
    if theirs == __version__:
        yield good("server", f"version {theirs}, as this one")
    else:
        yield warning("server", f"version {theirs}, and this is {__version__}", "update the older")
    for model in models:
        yield good(
            "server", f"{model['tag']}: {model['backend']}, {model['dtype']} on {model['device']}"
        )


def _status(url: str, path: str) -> int:
    try:
        return httpx.get(url + path, timeout=CONNECT_S).status_code
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
