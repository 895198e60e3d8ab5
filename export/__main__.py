"""`python -m export`: write a Stable Diffusion XL model into the BentoML model store."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps as dump_json
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from export.compile.requests import PICTURES, parse_targets
from export.compile.targets import all_targets
from export.errors import ExportError
from export.job import Options, Result, run
from export.progress import Durations, Progress
from sdxl_bento.config import load_export_settings
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import Exporter, PredictionType, Quantization, Variant, WeightDtype


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="'embedded'; a folder in diffusers' layout or a checkpoint file; a hub id; "
            "hf://, https://, s3://, gs://, pvc:// or file://. If not given: STORAGE_URI, "
            "MODEL_ID, or /mnt/models.",
            show_default=False,
        ),
    ] = "",
    refiner: Annotated[str | None, typer.Option(help="Source of a refiner to go with it.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A LoRA's .safetensors file, or NAME=FILE; may be given again."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in the store; made from the source if not given.")
    ] = None,
    dtype: Annotated[
        WeightDtype | None, typer.Option(help="Dtype of the weights; the source's if not given.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub repository.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Folder or hub id with the configs of a checkpoint in one file."),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(help="Kind of model, where its scheduler's config does not say it."),
    ] = None,
    prediction_type: Annotated[
        PredictionType | None,
        typer.Option(help="What the model predicts, where its source does not say it, or errs."),
    ] = None,
    zero_terminal_snr: Annotated[
        bool | None,
        typer.Option(
            "--zero-terminal-snr/--no-zero-terminal-snr",
            help="Whether the model was trained with zero terminal SNR, where its source errs.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Compile for: {', '.join(all_targets())}, or auto, the one that suits this "
            "machine. Several with commas. Weights that run eagerly are always written."
        ),
    ] = None,
    compute_dtype: Annotated[
        WeightDtype | None,
        typer.Option(help="What compiled parts compute in; fp16 on CUDA, else what the CPU has."),
    ] = None,
    quantize: Annotated[
        Quantization | None, typer.Option(help="Low-bit weights for the compiled UNets.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Sizes with shapes of their own, as 1024x1024,896x1152.")
    ] = "",
    rows: Annotated[
        str, typer.Option(help="Numbers of UNet rows with shapes of their own, as 1,2,4,8.")
    ] = "",
    exporter: Annotated[
        Exporter,
        typer.Option(help="What writes the graphs of target onnx: torch, or Hugging Face optimum."),
    ] = "torch",
    attention: Annotated[
        str,
        typer.Option(help="Attention backend of the eager model; auto: the fastest on a GPU."),
    ] = "auto",
    pictures: Annotated[
        int, typer.Option(min=0, help="Pictures that each target draws to be verified; 0: none.")
    ] = PICTURES,
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
    progress = _progress()
    with _refusals(progress):
        targets = parse_targets(
            ",".join(target or ()),
            dtype=compute_dtype,
            quantization=quantize,
            sizes=sizes,
            rows=rows,
            exporter=exporter,
        )
    options = Options(
        source=source,
        refiner=refiner,
        loras=tuple(lora or ()),
        name=name,
        dtype=dtype,
        revision=revision,
        config=config,
        variant=variant,
        prediction=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        force=force,
        targets=targets,
        pictures=pictures,
        attention=attention,
    )
    with _refusals(progress):
        result = run(options, progress)
    _report(result, progress, brief)


def verify(
    tag: Annotated[str, typer.Argument(help="Tag of a model in the store.")],
    pictures: Annotated[
        int, typer.Option(min=0, help="Pictures that each backend draws; 0: none.")
    ] = PICTURES,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare every compiled backend of a stored model with the original, on this machine.

    Ends with 1 if one is further from it than its dtype allows.
    """
    from export.verify_command import verify_model

    progress = _progress()
    with _refusals(progress, "Not verified."):
        backends = verify_model(tag, pictures, progress)
    if json:
        content = [info.model_dump(mode="json") for info in backends]
        sys.stdout.write(dump_json(content, indent=2) + "\n")


def _progress() -> Progress:
    return Progress(durations=Durations(load_export_settings().cache / "durations.json"))


@contextmanager
def _refusals(progress: Progress, what: str = "Not exported.") -> Iterator[None]:
    """Print errors that a user can act on, and exit with a status that scripts can test."""
    try:
        yield
    except (ExportError, ConfigurationError) as error:
        progress.console.print(f"[red]{what}[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        progress.say("Interrupted; the store is as it was.")
        raise typer.Exit(130) from None


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
    """Exit by an exception, so that the staging folder is removed."""
    raise SystemExit(143)


def main() -> None:
    """The entry point of the command: `verify TAG`, or a source to export."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.argv[1:2] == ["verify"]:
        del sys.argv[1]
        typer.run(verify)
    else:
        typer.run(export)


if __name__ == "__main__":
    main()
