"""`python -m export`: write a Stable Diffusion XL model into the BentoML model store."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from export.errors import ExportError
from export.job import Options, Result, run
from export.progress import Progress
from export.weights import as_dtype


class Dtype(StrEnum):
    """Dtypes that weights can be written in."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


def export(
    source: Annotated[
        str, typer.Argument(help="'embedded', a folder in diffusers' layout, or a hub id.")
    ],
    refiner: Annotated[
        str | None, typer.Option(help="Folder or hub id of a refiner to go with it.")
    ] = None,
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA's .safetensors file; may be given again.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in the store; made from the source if not given.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights; the source's if not given.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub repository.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Export even if the store has the same model.")
    ] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="Leave out the tag and what to do next.")
    ] = False,
) -> None:
    """Write an SDXL model into the BentoML model store, ready to be served.

    Stages go to stderr, the model's tag alone to stdout. A failed or interrupted export leaves
    the store as it was.
    """
    progress = Progress()
    options = Options(
        source=source,
        refiner=refiner,
        loras=tuple(lora or ()),
        name=name,
        dtype=as_dtype(dtype.value) if dtype else None,
        revision=revision,
        force=force,
    )
    try:
        result = run(options, progress)
    except ExportError as error:
        progress.console.print(f"[red]Not exported.[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        progress.say("Interrupted; the store is as it was.")
        raise typer.Exit(130) from None
    _report(result, progress, brief)


def _report(result: Result, progress: Progress, brief: bool) -> None:
    if not result.created:
        hint = "" if brief else " (--force exports it again)"
        progress.say(f"{result.tag} has the same content already{hint}.")
    elif brief:
        progress.say(f"Exported {result.tag}")
    if not brief:
        sys.stdout.write(f"{result.tag}\n")
        sys.stdout.flush()
        progress.say(f"Serve it:  SDXL_MODEL={result.tag} bentoml serve")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that the staging folder is removed on the way out."""
    raise SystemExit(143)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminate)
    typer.run(export)


if __name__ == "__main__":
    main()
