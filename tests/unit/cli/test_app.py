"""The command line as a whole: what it offers, that all of it is documented, how quick it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sdxl_bento import __version__
from sdxl_bento.cli.app import app
from sdxl_bento.cli.failures import ExitCode
from sdxl_bento.params import GenerateParams

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "guides" / "command-line.md").read_text("utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_field_of_a_call_is_an_option_of_generate() -> None:
    assert set(GenerateParams.model_fields) <= {each.name for each in COMMANDS["generate"].params}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    heading = f"## {name}"
    assert heading in GUIDE
    section = GUIDE.split(heading, 1)[1].split("\n## ", 1)[0]
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if option.startswith("-"):
                assert f"`{option}" in section, f"{name} {option}"


def test_no_documented_option_is_gone() -> None:
    known = {opt for each in COMMANDS.values() for param in each.params for opt in param.opts}
    for name in COMMANDS:
        section = GUIDE.split(f"## {name}", 1)[1].split("\n## ", 1)[0]
        rows = [line for line in section.splitlines() if line.startswith("| `-")]
        options = [word for row in rows for word in row.split("|")[1].replace(",", " ").split()]
        for option in options:
            if option.startswith("`-"):
                assert option.strip("`") in known, f"{name} {option}"


def test_every_exit_code_is_documented() -> None:
    for code in ExitCode:
        assert f"| {int(code)} |" in GUIDE, code.name


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from sdxl_bento.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'bentoml', 'diffusers', 'pydantic_settings', 'httpx', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    for arguments in (["--version"], ["generate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout
    assert __version__ in subprocess.run(
        [sys.executable, "-m", "sdxl_bento", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_usage_errors_end_with_2(run: Any) -> None:
    for arguments in (
        ["generate"],
        ["nonsense"],
        ["generate", "x", "--steps", "many"],
        ["generate", "x", "--size", "wide"],
        ["generate", "x", "--size", "64x64", "--width", "64"],
        ["generate", "x", "--lora", "striped=much"],
        ["generate", "x", "--strength", "0"],
        ["generate", "x", "--refine-only"],
        ["generate", "x", "--image", "not-there.png"],
        ["generate", "x", "--out", "picture.gif"],
        ["generate", "x", "--out", "picture.png", "--format", "jpeg"],
        ["generate", "x", "--out", "-", "--json"],
        ["generate", "x", "--out", "-", "-N", "2"],
        ["generate", "x", "--url", "ftp://somewhere"],
        ["bench", "--clients", "1,none"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert not result.stdout, arguments
        assert result.stderr, arguments
