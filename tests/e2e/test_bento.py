"""A built bento, moved to a place that has nothing else: it brings its model along."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx
import pytest

from export.embedded.checker import analyse
from tests.e2e.conftest import REAL
from tests.e2e.test_service import RED, opened
from tests.support.server import ROOT, serve


def bentoml(*arguments: str, home: Path, cwd: Path = ROOT) -> str:
    env = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def archive(embedded_tag: str, model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bento") / "exported.bento"
    tag = bentoml("build", "--output", "tag", home=model_store).removeprefix("__tag__:")
    bentoml("export", tag, str(path), home=model_store)
    return path


@pytest.mark.parametrize("packed", ["imported", "folder"])
def test_a_bento_serves_alone(archive: Path, tmp_path: Path, packed: str) -> None:
    """`imported`: into an empty store; `folder`: unpacked, as in a container."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if packed == "imported":
        bentoml("import", str(archive), home=home, cwd=elsewhere)
        target = "sdxl-bento:latest"
    else:
        home.mkdir()
        with tarfile.open(archive) as files:
            files.extractall(elsewhere / "bento", filter="data")
        target = str(elsewhere / "bento")
    env = REAL | {"BENTOML_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with serve(target, tmp_path / "log", env=env, cwd=elsewhere) as server:
        answer = httpx.post(f"{server.url}/generate", json=RED, timeout=120)
        assert answer.status_code == 200, answer.text
        found = analyse(opened(answer.content))
        assert (found.colour, found.shape, found.background) == ("red", "circle", "blue")
        assert httpx.get(f"{server.url}/").status_code == 200
