"""The files that say what is installed agree with each other, and are documented."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
        ("requirements.txt", PROJECT["dependencies"]),
        ("constraints.txt", PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["gpu"]),
    ],
)
def test_pins_are_within_the_ranges(file: str, wanted: list[str]) -> None:
    pinned = pins(file)
    for requirement in map(Requirement, wanted):
        assert pinned[requirement.name] in requirement.specifier, requirement


def test_a_bento_installs_what_was_tested() -> None:
    assert pins("requirements.txt").items() <= pins("constraints.txt").items()


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
