"""The parameters of a call, with their bounds. Every protocol maps to `GenerateParams`."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from sdxl_bento.fields import Control, Wire
from sdxl_bento.sampler_names import SamplerName

MAX_SEED = 2**63 - 1
MAX_PROMPT_CHARS = 8_000

OutputFormat = Literal["png", "webp", "jpeg"]
_Pixels = Annotated[int, Field(ge=0, le=8192)]
# The schema is written out because OpenAPI 3.0 and BentoML's clients don't know `prefixItems`.
Size = Annotated[
    tuple[_Pixels, _Pixels],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 8192},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]


_OWN = Control("own")
_SERVICE: Final = "Deadline and priority"
# The help of options whose value is written differently from the field's.
_MODEL = (
    "Name of a model of the server; without a server, a tag in BentoML's store. "
    "Default: the server's default model, or SDXL_MODEL."
)
_LORA = "NAME, NAME=SCALE or NAME:SCALE. The option can be repeated."
_FORMAT = "png, webp or jpeg. Default: by the extension of --out."


def _size(label: str) -> Wire:
    help = "Pixels, as 1024x768."
    return Wire(label, group="Micro-conditioning", help=help, pair="WxH", control=None)


def _corner(label: str) -> Wire:
    help = "Pixels, as 0,0."
    return Wire(label, group="Micro-conditioning", help=help, pair="TOP,LEFT", control=None)


class _Fields(BaseModel):
    """Fields that a caller sends.

    A number may be sent as text, because HTML forms send text. Booleans and numbers are not
    interchangeable: `true` is not accepted as a number, nor `1` as `true`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_flags(cls, value: object, info: ValidationInfo) -> object:
        is_flag = cls.model_fields[str(info.field_name)].annotation is bool
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(each, bool) != is_flag for each in items):
            raise ValueError("true or false" if is_flag else "no true or false")
        return value


class LoraRef(_Fields):
    """One adapter of a request: its name, and how strongly it is applied."""

    name: str = Field(min_length=1, max_length=200, description="A name that GET /loras lists.")
    scale: float = Field(1.0, ge=-8.0, le=8.0, description="Weight of the adapter; 1 as trained.")


class GenerateParams(_Fields):
    """One call: a prompt, and how to draw it. The model decides about size and sampler if unset."""

    prompt: Annotated[str, Wire("Prompt", group="Prompt", cli=None, control=_OWN)] = Field(
        max_length=MAX_PROMPT_CHARS,
        description="What to draw.",
        examples=["a red circle on a blue background"],
    )
    prompt_2: Annotated[str | None, Wire("Second prompt", group="Prompt", control=None)] = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Prompt of the second text encoder."
    )
    negative_prompt: Annotated[
        str | None,
        Wire(
            "Negative prompt",
            group="Prompt",
            cli="--negative-prompt -n",
            control=Control(name="negative", placeholder="What to avoid"),
        ),
    ] = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description='What to avoid. Leaving it unset differs from "": SDXL base then uses zeros.',
    )
    negative_prompt_2: Annotated[
        str | None, Wire("Second negative prompt", group="Prompt", control=None)
    ] = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Negative prompt of the second text encoder."
    )
    model: Annotated[
        str | None, Wire("Model", cli="--model -m", help=_MODEL, control=_OWN, infotext="Model")
    ] = Field(None, max_length=200, description="Name of a loaded model; unset, the default one.")
    width: Annotated[int | None, Wire("Width", cli="--width -W", control=_OWN, a1111="width")] = (
        Field(None, ge=64, le=4096, description="Width in pixels.")
    )
    height: Annotated[
        int | None, Wire("Height", cli="--height -H", control=_OWN, a1111="height")
    ] = Field(None, ge=64, le=4096, description="Height in pixels.")
    num_inference_steps: Annotated[
        int,
        Wire(
            "Steps",
            cli="--steps --num-inference-steps",
            control=Control(name="steps"),
            setting="max_steps",
            a1111="steps",
            infotext="Steps",
            aliases=("steps", "num_steps"),
        ),
    ] = Field(25, ge=1, le=200, description="Denoising steps. Distilled models default to 4.")
    guidance_scale: Annotated[
        float,
        Wire(
            "Guidance",
            cli="--guidance-scale -g",
            control=Control(name="guidance", high=20, step=0.1),
            a1111="cfg_scale",
            infotext="CFG scale",
            aliases=("cfg_scale",),
        ),
    ] = Field(
        5.0,
        ge=0.0,
        le=50.0,
        description="Scale of classifier-free guidance; 1 or less turns it off. "
        "Distilled models default to 0.",
    )
    guidance_rescale: Annotated[float, Wire("Guidance rescale", control=None)] = Field(
        0.0, ge=0.0, le=1.0, description="Strength of the guidance rescale (arXiv 2305.08891)."
    )
    seed: Annotated[int | None, Wire("Seed", cli="--seed -s", control=_OWN, infotext="Seed")] = (
        Field(
            None, ge=0, le=MAX_SEED, description="Random if unset. Equal seeds give equal pictures."
        )
    )
    num_images: Annotated[
        int,
        Wire(
            "Pictures",
            cli="--num-images -N",
            control=Control(name="count", high=8),
            setting="max_images",
            openai="n",
            aliases=("num_images_per_prompt", "num_outputs"),
        ),
    ] = Field(1, ge=1, le=16, description="Number of pictures. Picture i is drawn with seed + i.")
    sampler: Annotated[
        SamplerName | None,
        Wire(
            "Sampler",
            help="A name that `sdxl-bento samplers` lists.",
            infotext="Sampler",
            aliases=("scheduler", "sampler_name"),
        ),
    ] = Field(None, description="A name that GET /samplers lists; the model's own if unset.")
    strength: Annotated[
        float,
        Wire(
            "Strength",
            group="Image to image",
            control=Control(label="How much of it may change", low=0.05, step=0.05, initial=0.6),
            infotext="Denoising strength",
            aliases=("denoising_strength", "prompt_strength"),
        ),
    ] = Field(
        0.3, gt=0.0, le=1.0, description="For image-to-image: how much of the picture changes."
    )
    refiner: Annotated[
        bool,
        Wire(
            "Refiner",
            group="Refiner",
            cli="--refiner",
            control=Control(label="Let the refiner finish it"),
            aliases=("use_refiner",),
        ),
    ] = Field(False, description="Let the refiner finish the picture.")
    high_noise_frac: Annotated[
        float,
        Wire(
            "Share of the base model",
            group="Refiner",
            control=None,
            infotext="Refiner switch at",
            aliases=("denoising_limit", "denoising_end"),
        ),
    ] = Field(
        0.8,
        gt=0.0,
        lt=1.0,
        description="With the refiner: the share of the noise schedule that the base model runs.",
    )
    aesthetic_score: Annotated[float, Wire("Aesthetic score", group="Refiner", control=None)] = (
        Field(6.0, ge=0.0, le=10.0, description="Conditioning of the refiner.")
    )
    negative_aesthetic_score: Annotated[
        float, Wire("Negative aesthetic score", group="Refiner", control=None)
    ] = Field(2.5, ge=0.0, le=10.0, description="Refiner conditioning, for the negative prompt.")
    original_size: Annotated[Size | None, _size("Original size")] = Field(
        None, description="Micro-conditioning: (height, width)."
    )
    target_size: Annotated[Size | None, _size("Target size")] = Field(
        None, description="Micro-conditioning: (height, width)."
    )
    crops_coords_top_left: Annotated[Size, _corner("Crop")] = Field(
        (0, 0), description="Micro-conditioning: (top, left)."
    )
    negative_original_size: Annotated[Size | None, _size("Negative original size")] = Field(
        None, description="Micro-conditioning of the negative prompt: (height, width)."
    )
    negative_target_size: Annotated[Size | None, _size("Negative target size")] = Field(
        None, description="Micro-conditioning of the negative prompt: (height, width)."
    )
    negative_crops_coords_top_left: Annotated[Size, _corner("Negative crop")] = Field(
        (0, 0), description="Micro-conditioning of the negative prompt: (top, left)."
    )
    loras: Annotated[
        tuple[LoraRef, ...], Wire("LoRAs", cli="--lora -l", help=_LORA, control=_OWN)
    ] = Field((), max_length=8, description="Adapters (LoRA) to apply.")
    lora_late_ok: Annotated[bool, Wire("Late LoRAs", control=None, a1111="lora_late_ok")] = Field(
        False, description="Start while adapters still load; apply them once they are loaded."
    )
    slo_ms: Annotated[
        float | None, Wire("Deadline (ms)", group=_SERVICE, control=None, a1111="slo_ms")
    ] = Field(
        None, gt=0, le=3_600_000, description="Answer within this many milliseconds, or refuse."
    )
    priority: Annotated[int, Wire("Priority", group=_SERVICE, control=None, a1111="priority")] = (
        Field(0, ge=-10, le=10, description="Among equal requests, a higher priority runs sooner.")
    )
    degrade_min_steps: Annotated[
        int | None, Wire("Least steps", group=_SERVICE, control=None, a1111="degrade_min_steps")
    ] = Field(None, ge=1, le=200, description="Fewest steps that may be taken to meet slo_ms.")
    output_format: Annotated[
        OutputFormat,
        Wire("Format", group="Output", cli="--format --output-format", help=_FORMAT, control=None),
    ] = Field("png", description="Format of the pictures' files.")
    output_quality: Annotated[
        int,
        Wire(
            "Quality",
            group="Output",
            cli="--quality --output-quality",
            control=None,
            openai="output_compression",
        ),
    ] = Field(90, ge=1, le=100, description="Quality of webp and jpeg files.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.degrade_min_steps is not None:
            if self.slo_ms is None:
                raise ValueError("degrade_min_steps needs slo_ms: there is no deadline to meet")
            if self.degrade_min_steps > self.num_inference_steps:
                raise ValueError(
                    f"degrade_min_steps is {self.degrade_min_steps}, allowed: at most "
                    f"num_inference_steps, which is {self.num_inference_steps}"
                )
        if self.seed is not None and self.seed + self.num_images - 1 > MAX_SEED:
            raise ValueError(f"seed + num_images - 1 must be at most {MAX_SEED}")
        names = [lora.name for lora in self.loras]
        if len(set(names)) != len(names):
            raise ValueError("loras names one adapter twice; add the scales up instead")
        return self

    @property
    def uses_guidance(self) -> bool:
        """Whether it takes a conditional and an unconditional row; the same rule as diffusers."""
        return self.guidance_scale > 1.0


class ResolvedParams(GenerateParams):
    """The parameters of a call after a model was chosen for it, with size, sampler and seed set.

    `diffusion.plan.resolve` creates them. As JSON they are the `params` of an answer.
    """

    model: str
    width: int
    height: int
    sampler: SamplerName
    seed: int
