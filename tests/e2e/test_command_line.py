"""`sdxl-bento` with the embedded model: on a real server, and loaded in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from export.embedded.checker import analyse
from sdxl_bento.cli.app import app
from tests.support.command_line import command_line
from tests.support.server import ROOT, Server

STEPS = 14
RED = ["a red circle on a blue background", "--seed", "1", "--steps", str(STEPS)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a command writes, it writes here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SDXL_URL", raising=False)
    return tmp_path


@pytest.fixture
def local(embedded_tag: str, folder: Path) -> dict[str, str]:
    """The environment of a process that loads the model itself."""
    own = {"SDXL_MODEL": embedded_tag, "SDXL_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, prog_name="sdxl-bento")


def seen(path: str) -> tuple[str | None, str | None, str]:
    with Image.open(path) as picture:
        found = analyse(picture.convert("RGB"))
    return found.colour, found.shape, found.background


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def described(path: str) -> Any:
    with Image.open(path) as picture:
        return json.loads(picture.text["sdxl-bento"])  # type: ignore[attr-defined]


def test_both_ways_draw_the_same_picture(server: Server, local: dict[str, str]) -> None:
    remote = run("generate", *RED, "--out", "there.png", "--url", server.url)
    assert (remote.exit_code, remote.stdout) == (0, "there.png\n"), remote.stderr
    done = subprocess.run(
        [sys.executable, "-m", "sdxl_bento", "generate", *RED, "--lora", "striped=0"],
        env=local, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = "a-red-circle-on-a-blue-background-1.png"
    assert done.stdout == f"{path}\n"
    assert f"seed 1 · {STEPS} steps · euler · 128x128 · sdxl-embedded" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # no bar, no spinner, no log
    assert seen(path) == seen("there.png") == ("red", "circle", "blue")
    assert np.abs(pixels(path) - pixels("there.png")).max() <= 1
    here, there = described(path), described("there.png")
    assert here.pop("loras") == [{"name": "striped", "scale": 0.0}]
    assert not there.pop("loras")
    assert here == there
    assert (here["seed"], here["num_inference_steps"]) == (1, STEPS)


def test_options_reach_the_picture(server: Server) -> None:
    for name, more in (
        ("plain", []),
        ("striped", ["--lora", "striped:1"]),
        ("refined", ["--refiner"]),
    ):
        done = run("generate", *RED, "-o", f"{name}.png", "--url", server.url, *more)
        assert done.exit_code == 0, done.stderr
    assert np.abs(pixels("plain.png") - pixels("striped.png")).mean() > 3
    assert (pixels("plain.png") != pixels("refined.png")).any()
    done = run(
        "generate", "a red circle on a yellow background", "--image", "plain.png", "--strength",
        "0.9", "--seed", "2", "-o", "redrawn.jpg", "--quality", "95", "--url", server.url,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert seen("redrawn.jpg")[2] == "yellow"


def test_what_the_server_says(server: Server, embedded_tag: str) -> None:
    assert embedded_tag in run("models", "--url", server.url).stdout
    loras = json.loads(run("loras", "--url", server.url, "--json").stdout)["loras"]
    assert [lora["name"] for lora in loras] == ["outlined", "striped"]
    refused = run("generate", "x", "--steps", "101", "--url", server.url)
    assert refused.exit_code == 3
    assert "allowed: at most 100 on this server" in refused.stderr
    done = run("bench", "--clients", "2", "--requests", "2", "--steps", "2", "--url", server.url)
    assert done.exit_code == 0, done.stderr


def test_ctrl_c_while_it_draws(local: dict[str, str], folder: Path) -> None:
    asked = ["generate", *RED[:-1], "100", "-N", "8", "--verbose"]
    with command_line(asked, local) as process:
        assert process.stderr is not None
        log = ""
        while "loaded in" not in log:
            line = process.stderr.readline()
            assert line, f"it ended before the model was loaded: {log}"
            log += line
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), log + error
    assert "Traceback" not in error
    assert not list(folder.iterdir())


SCRIPT = """
import sys
from sdxl_bento.cli.app import app

commands = [line.split("|") for line in sys.stdin.read().splitlines()]
for command in commands:
    code = app(command, standalone_mode=False)
    print("ended with", code or 0, flush=True)
"""


def test_everything_else_in_this_process(local: dict[str, str], folder: Path) -> None:
    """In one process, since most of its time is the import of torch."""
    Image.new("RGB", (128, 128), "blue").save(folder / "blue.png")
    commands = [
        ["generate", "x", "--image", "blue.png", "--refine-only", "-o", "r.png", "--steps", "8"],
        ["generate", "x", "--lora", "nope", "-o", "nothing.png"],
        ["generate", "x", "--width", "100", "-o", "nothing.png", "--json"],
        ["bench", "--clients", "2", "--requests", "4", "--steps", "2", "--json"],
        ["doctor"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(map("|".join, commands)),
        env=local, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refined, unknown, wrong, bench, doctor = done.stdout.split("ended with ")[:-1]
    assert refined == "r.png\n"
    assert unknown.endswith("0\n")
    assert "Error: no LoRA named 'nope'; available: outlined, striped" in done.stderr
    assert json.loads(wrong[2:])["error"]["field"] == "width"
    assert json.loads(bench[2:])["levels"][0]["pictures"] == 4
    assert "Ready to serve" in doctor
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("ended")] == [
        "0", "4", "3", "0", "0",
    ]  # fmt: skip
    assert not (folder / "nothing.png").exists()
