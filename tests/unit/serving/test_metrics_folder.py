"""Each server has a folder of its own for its metrics."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer

from sdxl_bento import scratch
from sdxl_bento.serving.metrics_folder import use_own_folder_in_command


@pytest.mark.parametrize("command", ["serve", "build"])
def test_only_a_server_has_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    provider = BentoMLContainer.prometheus_multiproc_dir
    try:
        with click.Context(click.Command(command), info_name=command):
            use_own_folder_in_command()
        folders = list(tmp_path.iterdir())
        assert len(folders) == (command == "serve")
        for folder in folders:
            assert Path(provider.get()).parent == folder
            assert scratch.remove_dead() == []  # this process holds it
    finally:
        provider.reset()
