"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# One thread each: the tests' tensors are tiny, and threads that wait for each other on a busy
# machine cost them a factor of five. Read by torch when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME for this process of the tests, so that nobody's own store is touched.

    It is set before `bentoml` is imported by any test, and children inherit it.
    """
    home = tmp_path_factory.mktemp("bentoml")
    os.environ["BENTOML_HOME"] = str(home)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    return home


@pytest.fixture(scope="session")
def embedded_tag(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tag of the embedded model in `model_store`, exported by the real command."""
    return exported_once(tmp_path_factory, model_store, ["embedded"]).tag


@pytest.fixture(scope="session")
def compiled_export(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same model with what compiles quickly for a CPU beside it: one target, then both."""
    compiled = ["embedded", "--name", "sdxl-compiled", "--target"]
    runs = [*compiled, "onnx"], [*compiled, "onnx,openvino"]
    return exported_once(tmp_path_factory, model_store, *runs)


@pytest.fixture(scope="session")
def compiled_tag(compiled_export: Exported) -> str:
    """Tag of the embedded model with verified backends for a CPU."""
    return compiled_export.tag


@dataclass(frozen=True)
class Exported:
    """What the last of some exports printed."""

    tag: str
    errors: str


def exported_once(
    factory: pytest.TempPathFactory, store: Path, *commands: Sequence[str]
) -> Exported:
    """Run exports in the first process of the tests that asks; each gets a copy of the model."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    root = factory.getbasetemp().parent if worker else factory.getbasetemp()
    name = hashlib.sha256(repr(commands).encode()).hexdigest()[:12]
    home, note = root / f"exported-{name}", root / f"exported-{name}.json"
    with FileLock(root / f"exported-{name}.lock"):
        if not note.exists():
            done = [run_export(home, command) for command in commands][-1]
            note.write_text(json.dumps({"tag": done.stdout.strip(), "errors": done.stderr}))
    exported = Exported(**json.loads(note.read_text()))
    model = Path("models", exported.tag.partition(":")[0])
    shutil.copytree(home / model, store / model)
    return exported


def run_export(home: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        cwd=ROOT, env=os.environ | {"BENTOML_HOME": str(home)},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
