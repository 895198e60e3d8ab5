"""One real server over the embedded model, for all end-to-end tests that don't end it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.server import Server, serve

# One thread: on a busy machine torch's threads wait for each other more than they work.
REAL = {"SDXL_THREADS": "1"}


@pytest.fixture(scope="session")
def server(embedded_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = REAL | {"SDXL_MODEL": embedded_tag, "SDXL_MAX_STEPS": "100"}
    with serve(
        "service:SDXLService", tmp_path_factory.mktemp("server") / "log", env=env
    ) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
