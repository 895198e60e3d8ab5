"""Servers over an engine that draws nothing, shared by the suites of several protocols."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import FAKED, Server, faked_environment, serve

RUN_S = 0.4


@pytest.fixture(scope="session")
def faked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each call takes RUN_S in four steps, each with a preview."""
    folder = tmp_path_factory.mktemp("faked")
    fakes = {"FAKE_RUN_S": RUN_S, "FAKE_PREVIEWS": 1, "SDXL_MAX_PIXELS": 1_000_000}
    env = faked_environment(folder / "home", **fakes)
    with serve(FAKED, folder / "log", env=env) as running:
        yield running


@pytest.fixture(scope="session")
def loading_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It is alive and never ready."""
    folder = tmp_path_factory.mktemp("loading")
    env = faked_environment(folder / "home", FAKE_LOAD_S=3600)
    with serve(FAKED, folder / "log", env=env, ready=False) as running:
        running.wait_for("/livez", 200)
        yield running
