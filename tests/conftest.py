"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One thread each: the tests' tensors are tiny, and threads that wait for each other on a busy
# machine cost them a factor of five. Read by torch when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME for this run of the tests, so that nobody's own store is touched.

    It is set before `bentoml` is imported by any test, and children inherit it.
    """
    home = tmp_path_factory.mktemp("bentoml")
    os.environ["BENTOML_HOME"] = str(home)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    return home


@pytest.fixture(scope="session")
def embedded_tag(model_store: Path) -> str:
    """Tag of the embedded model, exported once into `model_store` by the real command."""
    return _export("embedded").stdout.strip()


@pytest.fixture(scope="session")
def compiled_export(model_store: Path) -> subprocess.CompletedProcess[str]:
    """The same model with what compiles quickly for a CPU beside it: one target, then both."""
    name = ("--name", "sdxl-compiled")
    _export("embedded", *name, "--target", "onnx")
    return _export("embedded", *name, "--target", "onnx,openvino")


@pytest.fixture(scope="session")
def compiled_tag(compiled_export: subprocess.CompletedProcess[str]) -> str:
    """Tag of the embedded model with verified backends for a CPU."""
    return compiled_export.stdout.strip()


def _export(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
