"""`sdxl-bento generate`: draw pictures and write them to files."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sdxl_bento.cli import options
from sdxl_bento.cli.fields import Fields, only_set, option_name
from sdxl_bento.cli.files import Target
from sdxl_bento.cli.terminal import emit_json, reporting, say, stderr
from sdxl_bento.fields import IMAGE_TO_IMAGE, wires
from sdxl_bento.params import GenerateParams

if TYPE_CHECKING:
    from sdxl_bento.cli.drawer import InitImage, Result


@options.sets_fields()
def generate(
    fields: Fields,
    *,
    prompt: options.Prompt,
    image: options.Image = None,
    refine_only: options.RefineOnly = False,
    out: options.Out = None,
    force: options.Force = False,
    url: options.Url = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw pictures and write them to files.

    On the server that --url or SDXL_URL names; without one, the model is loaded here.
    stdout gets the paths of the files, or JSON; everything else goes to stderr.
    """
    target = Target(out, force=force)
    fields["prompt"] = sys.stdin.read().strip() if prompt == "-" else prompt
    fields |= only_set(output_format=target.format(fields.get("output_format")))
    _check(target, image, refine_only, fields, as_json)
    with reporting(as_json):
        target.prepare()
        begin = time.perf_counter()
        result = asyncio.run(
            _draw(url, fields, _init_image(image, refine_only), quiet=quiet, verbose=verbose)
        )
        images = result.answer["images"]
        paths = target.write(result.files, images, str(fields["prompt"]))
        if not quiet:
            for warning in result.answer.get("warnings", []):
                say(f"Warning: {warning['message']}")
            say(_summary(result, time.perf_counter() - begin))
    _report(result, paths, as_json)


def _check(
    target: Target,
    image: Path | None,
    refine_only: bool,
    fields: Fields,
    as_json: bool,
) -> None:
    """Raise BadParameter for options that do not go together."""
    if image is None:
        need_it = ["--refine-only"] if refine_only else []
        need_it += [
            option_name(name, wire)
            for name, wire in wires(GenerateParams).items()
            if wire.group == IMAGE_TO_IMAGE and name in fields
        ]
        if need_it:
            raise typer.BadParameter("needs --image", param_hint=need_it[0])
    if target.to_stdout and as_json:
        raise typer.BadParameter("stdout cannot take both the picture and JSON", param_hint="--out")
    if target.to_stdout and _count(fields) > 1:
        raise typer.BadParameter("stdout takes one picture", param_hint="--num-images")


def _count(fields: Fields) -> int:
    """The number of pictures that are asked for; it may be out of bounds."""
    count = fields.get("num_images", 1)
    assert isinstance(count, int)
    return count


async def _draw(
    url_option: str | None,
    fields: Fields,
    init_image: InitImage | None,
    *,
    quiet: bool,
    verbose: bool,
) -> Result:
    from sdxl_bento.cli.connect import connect, server_url
    from sdxl_bento.cli.progress import Bars

    console = stderr()
    console.quiet = quiet
    url, model = server_url(url_option), fields.get("model")
    name = str(model) if model is not None else None
    warm = "slo_ms" in fields  # a deadline needs measured step times
    async with connect(url, name, console, warm=warm, verbose=verbose) as drawer:
        with Bars(console, max(_count(fields), 1)) as bars:
            return await drawer.draw(fields, init_image, bars.update)


def _init_image(image: Path | None, refine_only: bool) -> InitImage | None:
    if image is None:
        return None
    from sdxl_bento.cli.connect import read_init_image

    return read_init_image(image, "refine" if refine_only else "img2img")


def _summary(result: Result, seconds: float) -> str:
    """One line about a call: seeds, steps, sampler, size, model, and how long it took."""
    params: dict[str, Any] = result.answer["params"]
    seeds = [str(image["seed"]) for image in result.answer["images"]]
    cut = result.answer.get("cut_from")
    parts = [
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}",
        f"{params['num_inference_steps']} steps",
        f"{params['sampler']}",
        f"{params['width']}x{params['height']}" + (f", cut from {cut}" if cut else ""),
        f"{result.answer['model']}",
        _times(result.answer["timings"], seconds),
    ]
    return " · ".join(parts)


def _times(timings: dict[str, float], seconds: float) -> str:
    """The time of the call, and the time in the queue and in all where they are longer."""
    total, queued = timings["total_ms"] / 1e3, timings["queue_ms"] / 1e3
    text = f"{total:.1f} s"
    if queued >= 0.1:
        text += f", {queued:.1f} s of it in the queue"
    if seconds - total >= 1:
        text += f"; {seconds:.1f} s in all"
    return text


def _report(result: Result, paths: list[Path], as_json: bool) -> None:
    if not as_json:
        sys.stdout.writelines(f"{path}\n" for path in paths)
        return
    images = [
        image | {"path": str(path), "bytes": len(data)}
        for image, path, data in zip(result.answer["images"], paths, result.files, strict=True)
    ]
    emit_json(result.answer | {"images": images})
