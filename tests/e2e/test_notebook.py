"""examples/clients.ipynb runs against a real server, and the committed one shows what it gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.server import ROOT, Server

NOTEBOOK = ROOT / "examples" / "clients.ipynb"


@pytest.fixture(scope="module")
def ran(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("notebook")
    kept = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    env = {**os.environ, **{name: str(folder / name) for name in kept}}
    command = [sys.executable, "-m", "tools.notebook", "--url", server.url]
    command += ["--output", str(folder / "ran.ipynb")]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=180)
    return nbformat.read(folder / "ran.ipynb", as_version=4)


def shown(notebook: Any) -> list[list[tuple[str, ...]]]:
    """What each cell shows, by kinds."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [tuple(sorted(each.get("data", {"text": 0}))) for each in cell.outputs] for cell in cells
    ]


def test_it_runs(ran: Any) -> None:
    pictures = [each for outputs in shown(ran) for each in outputs if "image/jpeg" in each]
    assert len(pictures) == 9


def test_the_committed_one_shows_the_same(ran: Any) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in ran.cells]
    assert shown(committed) == shown(ran), "run python -m tools.notebook"


def test_the_committed_one_names_no_machine() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert not re.search(r"127\.0\.0\.1|/(home|root|tmp|work|Users)/", text)
    assert str(Path.home()) not in text


def test_every_protocol_has_its_section() -> None:
    text = NOTEBOOK.read_text("utf-8")
    for name in ("native", "OpenAI", "KServe V1", "KServe V2", "AUTOMATIC1111", "dstack"):
        assert re.search(rf"## .*{name}", text), name
