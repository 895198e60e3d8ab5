"""`sdxl-bento generate`: draw pictures and write them to files."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sdxl_bento.cli import fields as parse
from sdxl_bento.cli import options
from sdxl_bento.cli.fields import Fields
from sdxl_bento.cli.files import Target
from sdxl_bento.cli.terminal import emit_json, reporting, say, stderr

if TYPE_CHECKING:
    from sdxl_bento.cli.drawer import InitImage, Result


def generate(
    prompt: options.Prompt,
    prompt_2: options.Prompt2 = None,
    negative_prompt: options.NegativePrompt = None,
    negative_prompt_2: options.NegativePrompt2 = None,
    model: options.Model = None,
    width: options.Width = None,
    height: options.Height = None,
    size: options.Size = None,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_rescale: options.GuidanceRescale = None,
    seed: options.Seed = None,
    num_images: options.NumImages = None,
    sampler: options.Sampler = None,
    loras: options.Lora = None,
    lora_late_ok: options.LoraLateOk = None,
    image: options.Image = None,
    strength: options.Strength = None,
    refine_only: options.RefineOnly = False,
    refiner: options.Refiner = None,
    high_noise_frac: options.HighNoiseFrac = None,
    aesthetic_score: options.AestheticScore = None,
    negative_aesthetic_score: options.NegativeAestheticScore = None,
    original_size: options.OriginalSize = None,
    target_size: options.OriginalSize = None,
    crops_coords_top_left: options.CropsCoordsTopLeft = None,
    negative_original_size: options.OriginalSize = None,
    negative_target_size: options.OriginalSize = None,
    negative_crops_coords_top_left: options.CropsCoordsTopLeft = None,
    slo_ms: options.SloMs = None,
    degrade_min_steps: options.DegradeMinSteps = None,
    priority: options.Priority = None,
    out: options.Out = None,
    force: options.Force = False,
    output_format: options.Format = None,
    output_quality: options.Quality = None,
    url: options.Url = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw pictures and write them to files.

    On the server that --url or SDXL_URL names; without one, the model is loaded here.
    stdout gets the paths of the files, or JSON; everything else goes to stderr.
    """
    width, height = parse.width_and_height(size, width, height)
    target = Target(out, force=force)
    fields = parse.given(
        prompt=sys.stdin.read().strip() if prompt == "-" else prompt,
        prompt_2=prompt_2,
        negative_prompt=negative_prompt,
        negative_prompt_2=negative_prompt_2,
        model=model,
        width=width,
        height=height,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        seed=seed,
        num_images=num_images,
        sampler=sampler,
        loras=parse.loras(loras),
        lora_late_ok=lora_late_ok,
        strength=strength,
        refiner=refiner,
        high_noise_frac=high_noise_frac,
        aesthetic_score=aesthetic_score,
        negative_aesthetic_score=negative_aesthetic_score,
        original_size=parse.height_and_width(original_size, "--original-size"),
        target_size=parse.height_and_width(target_size, "--target-size"),
        crops_coords_top_left=parse.pair(crops_coords_top_left, "--crops-coords-top-left", ","),
        negative_original_size=parse.height_and_width(
            negative_original_size, "--negative-original-size"
        ),
        negative_target_size=parse.height_and_width(negative_target_size, "--negative-target-size"),
        negative_crops_coords_top_left=parse.pair(
            negative_crops_coords_top_left, "--negative-crops-coords-top-left", ","
        ),
        slo_ms=slo_ms,
        degrade_min_steps=degrade_min_steps,
        priority=priority,
        output_format=target.format(output_format),
        output_quality=output_quality,
    )
    _check(target, image, refine_only, strength, num_images, as_json)
    with reporting(as_json):
        target.prepare()
        begin = time.perf_counter()
        result = asyncio.run(
            _draw(url, fields, _init_image(image, refine_only), quiet=quiet, verbose=verbose)
        )
        images = result.answer["images"]
        paths = target.write(result.files, images, str(fields["prompt"]))
        if not quiet:
            say(_summary(result, time.perf_counter() - begin))
    _report(result, paths, as_json)


def _check(
    target: Target,
    image: Path | None,
    refine_only: bool,
    strength: float | None,
    num_images: int | None,
    as_json: bool,
) -> None:
    """Options that do not go together."""
    if image is None and (refine_only or strength is not None):
        option = "--refine-only" if refine_only else "--strength"
        raise typer.BadParameter("needs --image", param_hint=option)
    if target.to_stdout and as_json:
        raise typer.BadParameter("stdout cannot take both the picture and JSON", param_hint="--out")
    if target.to_stdout and (num_images or 1) > 1:
        raise typer.BadParameter("stdout takes one picture", param_hint="--num-images")


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
    warm = "slo_ms" in fields  # what the steps cost has to be known for a promise
    async with connect(url, name, console, warm=warm, verbose=verbose) as drawer:
        pictures = fields.get("num_images", 1)
        assert isinstance(pictures, int)
        with Bars(console, max(pictures, 1)) as bars:
            return await drawer.draw(fields, init_image, bars.update)


def _init_image(image: Path | None, refine_only: bool) -> InitImage | None:
    if image is None:
        return None
    from sdxl_bento.cli.connect import read_init_image

    return read_init_image(image, refine_only=refine_only)


def _summary(result: Result, seconds: float) -> str:
    """What there is to know of a call: its seeds, how it was drawn and how long that took."""
    params: dict[str, Any] = result.answer["params"]
    seeds = [str(image["seed"]) for image in result.answer["images"]]
    parts = [
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}",
        f"{params['num_inference_steps']} steps",
        f"{params['sampler']}",
        f"{params['width']}x{params['height']}",
        f"{result.answer['model']}",
        _times(result.answer["timings"], seconds),
    ]
    return " · ".join(parts)


def _times(timings: dict[str, float], seconds: float) -> str:
    """The time of the call; where there was more to wait for than the drawing, that, too."""
    drawing, queued = timings["total_ms"] / 1e3, timings["queue_ms"] / 1e3
    text = f"{drawing:.1f} s"
    if queued >= 0.1:
        text += f", {queued:.1f} s of it in the queue"
    if seconds - drawing >= 1:
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
