"""The options that describe a call. Those that are not given are left to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_bento.cli.completion import formats, lora_names, model_tags, sampler_names

_PROMPT = "Prompt"
_PICTURE = "Picture"
_IMAGE = "Image to image"
_REFINER = "Refiner"
_CONDITIONING = "Micro-conditioning"
_SERVICE = "Deadline and priority"
_OUTPUT = "Output"

Url = Annotated[
    str | None,
    typer.Option(
        help='A running server, as http://localhost:3000. If not given: SDXL_URL; "": none.',
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of loading.")]

Prompt = Annotated[str, typer.Argument(help="What to draw; - reads it from stdin.")]
Prompt2 = Annotated[
    str | None, typer.Option(help="Prompt of the second text encoder.", rich_help_panel=_PROMPT)
]
NegativePrompt = Annotated[
    str | None,
    typer.Option("--negative-prompt", "-n", help="What to avoid.", rich_help_panel=_PROMPT),
]
NegativePrompt2 = Annotated[
    str | None,
    typer.Option(help="What to avoid, for the second text encoder.", rich_help_panel=_PROMPT),
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        help="A model of the server; without one, a tag in BentoML's store. If not given: the "
        "server's default, or SDXL_MODEL.",
        autocompletion=model_tags, rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
Width = Annotated[
    int | None, typer.Option("--width", "-W", help="Pixels.", rich_help_panel=_PICTURE)
]
Height = Annotated[
    int | None, typer.Option("--height", "-H", help="Pixels.", rich_help_panel=_PICTURE)
]
Size = Annotated[
    str | None, typer.Option(help="Width and height, as 1024x768.", rich_help_panel=_PICTURE)
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", "--num-inference-steps", help="Denoising steps.", rich_help_panel=_PICTURE
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", "-g", help="Classifier-free guidance; 1 or less turns it off.",
        rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
GuidanceRescale = Annotated[
    float | None,
    typer.Option(help="Rescale of the guided prediction, 0 to 1.", rich_help_panel=_PICTURE),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", "-s", help="The same seed, the same picture. Random if not given.",
        rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
NumImages = Annotated[
    int | None,
    typer.Option(
        "--num-images", "-N", help="Pictures to draw, each with the next seed.",
        rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
Sampler = Annotated[
    str | None,
    typer.Option(
        help="A name that `sdxl-bento samplers` lists.",
        autocompletion=sampler_names, rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", "-l", help="NAME, NAME=SCALE or NAME:SCALE; may be given again.",
        autocompletion=lora_names, rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
LoraLateOk = Annotated[
    bool | None,
    typer.Option(
        help="Start without adapters that are still loading.", rich_help_panel=_PICTURE,
    ),
]  # fmt: skip

Image = Annotated[
    Path | None,
    typer.Option(
        help="PNG, JPEG or WebP to redraw.", exists=True, dir_okay=False, readable=True,
        rich_help_panel=_IMAGE,
    ),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option(help="How much of it to redraw, over 0 to 1.", rich_help_panel=_IMAGE),
]
RefineOnly = Annotated[
    bool,
    typer.Option("--refine-only", help="Let the refiner alone redraw it.", rich_help_panel=_IMAGE),
]

Refiner = Annotated[
    bool | None,
    typer.Option("--refiner", help="Let the refiner finish the picture.", rich_help_panel=_REFINER),
]
HighNoiseFrac = Annotated[
    float | None,
    typer.Option(
        help="Share of the noise schedule that the base model runs.", rich_help_panel=_REFINER
    ),
]
AestheticScore = Annotated[
    float | None, typer.Option(help="Conditioning, 0 to 10.", rich_help_panel=_REFINER)
]
NegativeAestheticScore = Annotated[
    float | None, typer.Option(help="As above, negative branch.", rich_help_panel=_REFINER)
]

OriginalSize = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Pixels, as 1024x768.", rich_help_panel=_CONDITIONING),
]
CropsCoordsTopLeft = Annotated[
    str | None,
    typer.Option(metavar="TOP,LEFT", help="Pixels, as 0,0.", rich_help_panel=_CONDITIONING),
]

SloMs = Annotated[
    float | None,
    typer.Option(help="Answer within this many milliseconds, or refuse.", rich_help_panel=_SERVICE),
]
DegradeMinSteps = Annotated[
    int | None,
    typer.Option(
        help="Fewer steps, not under this, are fine to meet it.", rich_help_panel=_SERVICE
    ),
]
Priority = Annotated[
    int | None,
    typer.Option(help="-10 to 10; higher runs sooner.", rich_help_panel=_SERVICE),
]

Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="FILE|FOLDER/|-",
        help="Where to write; a folder ends with / or is there already; - is stdout. "
        "If not given: a name made of prompt and seed.",
        rich_help_panel=_OUTPUT,
    ),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option(
        "--force", "-f", help="Overwrite, in place of adding a number.", rich_help_panel=_OUTPUT
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", "--output-format", help="png, webp or jpeg. If not given: as --out ends.",
        autocompletion=formats, rich_help_panel=_OUTPUT,
    ),
]  # fmt: skip
Quality = Annotated[
    int | None,
    typer.Option(
        "--quality", "--output-quality", help="1 to 100, of webp and jpeg.",
        rich_help_panel=_OUTPUT,
    ),
]  # fmt: skip
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Errors alone go to stderr.", rich_help_panel=_OUTPUT
    ),
]  # fmt: skip
