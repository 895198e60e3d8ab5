"""A folder of its own for the metrics of each server.

BentoML has one folder for all servers with the same BENTOML_HOME, and empties it whenever one of
them starts: the metrics of the others would be lost, and theirs added up with those of the new one.
"""

from __future__ import annotations

import atexit
import shutil

import click

from sdxl_bento import scratch


def use_own_folder_in_command() -> None:
    """If this process is `bentoml serve`, let its workers share a new folder for their metrics."""
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return
    from bentoml._internal.configuration.containers import BentoMLContainer

    folder = scratch.make("metrics")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    inside = folder / "prometheus"  # BentoML empties it, and the lock has to stay
    BentoMLContainer.prometheus_multiproc_dir.set(str(inside))
