"""The application with all commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sdxl_bento import __version__
from sdxl_bento.cli.bench import bench
from sdxl_bento.cli.doctor.command import doctor
from sdxl_bento.cli.generate import generate
from sdxl_bento.cli.lists import loras, models, samplers

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"sdxl-bento {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Draw with Stable Diffusion XL: in this process, or on a running server (--url)."""


for command in (generate, models, loras, samplers, doctor, bench):
    app.command()(command)
