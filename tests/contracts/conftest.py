"""Servers over an engine that draws nothing, shared by the suites of several protocols."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.server import FAKED, Server, faked_environment, serve

RUN_S = 0.4
MOST = 16 + 64  # requests that run and wait at once, by default


@pytest.fixture(scope="session")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each call takes RUN_S in four steps, each with a preview."""
    folder = tmp_path_factory.mktemp("faked")
    fakes = {"FAKE_RUN_S": RUN_S, "FAKE_PREVIEWS": 1, "SDXL_MAX_PIXELS": 1_000_000}
    fakes["SDXL_UI"] = False
    env = faked_environment(folder / "home", **fakes)
    with serve(FAKED, folder / "log", env=env) as running:
        yield running


@pytest.fixture(scope="session")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It is alive and never ready."""
    folder = tmp_path_factory.mktemp("loading")
    env = faked_environment(folder / "home", FAKE_LOAD_S=3600)
    with serve(FAKED, folder / "log", env=env, ready=False) as running:
        running.wait_for("/livez", 200)
        yield running


def until_running(server: Server, count: int) -> float:
    """Wait until `count` calls run; returns the seconds that it took."""
    begin = time.monotonic()
    while (running := httpx.get(f"{server.url}/stats").json()["running"]) != count:
        assert time.monotonic() - begin < 5, f"{running} run"
        time.sleep(0.01)
    return time.monotonic() - begin


def finished(server: Server, protocol: str) -> int:
    """How many calls of a protocol have ended well."""
    counts = re.findall(
        rf'^sdxl_requests_total{{outcome="ok",protocol="{protocol}"}} (\d+)',
        httpx.get(f"{server.url}/metrics").text,
        re.MULTILINE,
    )
    return sum(map(int, counts))


def until_idle(server: Server) -> float:
    """Wait until nothing runs any more; returns the seconds that it took."""
    return until_running(server, 0)
