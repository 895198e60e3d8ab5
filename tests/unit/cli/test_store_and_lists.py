"""Local models, adapters and samplers: what the lists say, and what the shell proposes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_bento.cli.completion import lora_names, model_tags, one_of
from sdxl_bento.cli.store import find, stored
from sdxl_bento.errors import ModelNotFound
from sdxl_bento.params import SamplerName
from tests.unit.cli.conftest import store_model

Run = Callable[..., Any]


def test_find(home: Path) -> None:
    store_model(home, "tiny", "old")
    store_model(home, "tiny", "new")
    assert find("tiny").tag == find("tiny:latest").tag == "tiny:new"
    assert find("tiny:old").version == "old"
    for tag in ("tiny:none", "other"):
        with pytest.raises(ModelNotFound, match=r"tiny:new, tiny:old; `python -m export"):
            find(tag)


def test_other_models_of_bentoml_are_left_out(home: Path) -> None:
    folder = home / "models" / "classifier" / "1"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text("")
    assert stored() == []


def test_models(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model(home, "tiny")
    broken = store_model(home, "broken")
    (broken / "manifest.json").write_text("{}")
    monkeypatch.setenv("SDXL_MODEL", "tiny:latest")
    monkeypatch.setenv("SDXL_MODELS", "broken")
    shown = run("models")
    assert shown.exit_code == 0
    assert "tiny:one" in shown.stdout
    assert "onnx-cpu" in shown.stdout
    first, second = json.loads(run("models", "--json").stdout)["models"]
    assert (first["tag"], first["default"], first["served"]) == ("broken:one", False, True)
    assert "export the model again" in first["problem"]
    assert (second["tag"], second["default"], second["problem"]) == ("tiny:one", True, None)
    assert (second["width"], second["height"], second["has_refiner"]) == (128, 128, True)
    assert (second["dtype"], second["backends"], second["size_bytes"]) == ("fp16", ["onnx-cpu"], 12)


def test_no_models(run: Run) -> None:
    result = run("models")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "python -m export embedded" in result.stderr
    assert json.loads(run("models", "--json").stdout) == {"models": []}


def test_loras(home: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model(home, "tiny")
    store_model(home, "unasked")
    more = tmp_path / "more"
    more.mkdir()
    (more / "mine.safetensors").write_bytes(b"1234")
    monkeypatch.setenv("SDXL_MODEL", "tiny")
    monkeypatch.setenv("SDXL_LORA_DIR", str(more))
    monkeypatch.setenv("SDXL_LORA_PINNED", "mine")
    assert json.loads(run("loras", "--json").stdout)["loras"] == [
        {"name": "mine", "models": ["tiny"], "size_bytes": 4, "pinned": True},
        {"name": "striped", "models": ["tiny"], "size_bytes": 1, "pinned": False},
    ]
    assert "striped" in run("loras").stdout
    assert lora_names("m") == ["mine"]


def test_samplers(run: Run) -> None:
    names = list(SamplerName.__args__)  # type: ignore[attr-defined]
    assert run("samplers").stdout.split() == names
    assert json.loads(run("samplers", "--json").stdout) == {"samplers": names}


def test_a_wrong_setting_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_WORKERS", "none")
    result = run("models", "--json")
    assert result.exit_code == 1
    assert "SDXL_WORKERS is 'none'" in json.loads(result.stdout)["error"]["message"]
    assert result.stderr.startswith("Error: a setting is wrong: SDXL_WORKERS is 'none'")
    assert len(result.stderr.splitlines()) == 1


def test_completion(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model(home, "tiny")
    assert model_tags("t") == ["tiny", "tiny:one"]
    assert lora_names("") == ["striped"]
    assert one_of(("png", "webp", "jpeg"))("p") == ["png"]
    monkeypatch.setenv("SDXL_WORKERS", "none")
    assert lora_names("") == []


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("--model t", ["tiny", "tiny:one"]),
        ("--lora s", ["striped"]),
        ("--format p", ["png"]),
        ("--sampler tc", ["tcd"]),
    ],
)
def test_the_shell_asks_for_completion(home: Path, words: str, proposed: list[str]) -> None:
    """Run the command as a shell does, which asks by environment variables."""
    store_model(home, "tiny")
    variables = {
        "_SDXL_BENTO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"sdxl-bento generate {words}",
        "COMP_CWORD": "3",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "sdxl_bento"],
        env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == proposed
