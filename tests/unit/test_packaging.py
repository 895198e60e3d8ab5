"""The files that say what is installed agree with each other, and are documented."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tools import lock

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    exact = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines[1:]]
    assert all(exact), f"{name} holds more than exact pins"
    return {match[1]: match[2] for match in exact if match}


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("requirements-cpu.txt", PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["s3"]),
        ("requirements-gpu.txt", PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["s3"]),
        ("constraints.txt", PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["dev"]),
    ],
)
def test_pins_are_within_the_ranges(file: str, wanted: list[str]) -> None:
    pinned = pins(file)
    for requirement in map(Requirement, wanted):
        assert pinned[requirement.name] in requirement.specifier, requirement


def test_a_bento_installs_what_was_tested() -> None:
    cpu, gpu = pins("requirements-cpu.txt"), pins("requirements-gpu.txt")
    tested = pins("constraints.txt")
    assert cpu.items() <= tested.items()
    common = gpu.keys() & tested.keys()
    assert {name: gpu[name] for name in common} == {name: tested[name] for name in common}


def test_each_bento_has_its_own_runtimes() -> None:
    cpu, gpu = pins("requirements-cpu.txt").keys(), pins("requirements-gpu.txt").keys()
    # Two builds of one Python package, which would overwrite each other's files.
    assert {"onnxruntime", "onnxruntime-gpu"} & cpu == {"onnxruntime"}
    assert {"onnxruntime", "onnxruntime-gpu"} & gpu == {"onnxruntime-gpu"}
    # nvidia-ml-py is a few files of Python, which BentoML itself asks for.
    cuda = {name for name in gpu - {"nvidia-ml-py"} if name.startswith(("nvidia-", "cuda-"))}
    assert {"nvidia-cublas", "nvidia-ml-py"} <= gpu
    assert len(cuda) > 10
    assert not cpu & (cuda | {"triton"})
    assert not gpu & {"openvino"}


def test_the_two_bentos_differ_in_little_else() -> None:
    cpu = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    gpu = yaml.safe_load((ROOT / "deploy/container/bentofile.gpu.yaml").read_text())
    assert {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)} == {
        "name", "labels", "python", "envs",
    }  # fmt: skip


def test_lock_stops_where_torch_would_come_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a find-links folder has a CPU wheel."""
    answer = subprocess.CompletedProcess([], 0, stdout="torch==2.13.0+cpu\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(SystemExit, match="torch without CUDA"):
        lock.resolve(["torch"], "")


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "adr" / "dependencies.md").read_text()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *EXTRAS.values())):
        assert requirement.name in text, requirement.name


def test_every_decision_is_listed() -> None:
    text = (ROOT / "docs" / "adr" / "README.md").read_text()
    for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        assert path.name in text


def test_every_target_is_in_the_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE), target
