"""What a caller may ask for, with its bounds. Every protocol maps to `GenerateParams`."""

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
# Help of options that say it differently from the field, because the option is written differently.
_MODEL = (
    "A model of the server; without one, a tag in BentoML's store. "
    "If not given: the server's default, or SDXL_MODEL."
)
_LORA = "NAME, NAME=SCALE or NAME:SCALE; may be given again."
_FORMAT = "png, webp or jpeg. If not given: as --out ends."


def _size(label: str) -> Wire:
    help = "Pixels, as 1024x768."
    return Wire(label, group="Micro-conditioning", help=help, pair="WxH", control=None)


def _corner(label: str) -> Wire:
    help = "Pixels, as 0,0."
    return Wire(label, group="Micro-conditioning", help=help, pair="TOP,LEFT", control=None)


class _Fields(BaseModel):
    """Fields of a caller's. Numbers may come as text, as in forms; true is none, and 1 not true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_flags(cls, value: object, info: ValidationInfo) -> object:
        is_flag = cls.model_fields[str(info.field_name)].annotation is bool
        given = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(each, bool) != is_flag for each in given):
            raise ValueError("true or false" if is_flag else "no true or false")
        return value


class LoraRef(_Fields):
    """One adapter of a request, by name, and how strongly it is mixed in."""

    name: str = Field(min_length=1, max_length=200, description="Name of the LoRA, see GET /loras.")
    scale: float = Field(1.0, ge=-8.0, le=8.0, description="Weight of the adapter; 1 as trained.")


class GenerateParams(_Fields):
    """One call: a prompt and how to draw it. Unset sizes and sampler take the model's defaults."""

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
        description='What to avoid. Unset is not the same as "": SDXL base then takes zeros.',
    )
    negative_prompt_2: Annotated[
        str | None, Wire("Second negative prompt", group="Prompt", control=None)
    ] = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Negative prompt of the second encoder."
    )
    model: Annotated[
        str | None, Wire("Model", cli="--model -m", help=_MODEL, control=_OWN, infotext="Model")
    ] = Field(None, max_length=200, description="Name of a loaded model; the default one if unset.")
    width: Annotated[int | None, Wire("Width", cli="--width -W", control=_OWN, a1111="width")] = (
        Field(None, ge=64, le=4096, description="Pixels.")
    )
    height: Annotated[
        int | None, Wire("Height", cli="--height -H", control=_OWN, a1111="height")
    ] = Field(None, ge=64, le=4096, description="Pixels.")
    num_inference_steps: Annotated[
        int,
        Wire(
            "Steps",
            cli="--steps --num-inference-steps",
            control=Control(name="steps"),
            setting="max_steps",
            a1111="steps",
            infotext="Steps",
        ),
    ] = Field(25, ge=1, le=200, description="Denoising steps. Left out, 4 with a distilled model.")
    guidance_scale: Annotated[
        float,
        Wire(
            "Guidance",
            cli="--guidance-scale -g",
            control=Control(name="guidance", high=20, step=0.1),
            a1111="cfg_scale",
            infotext="CFG scale",
        ),
    ] = Field(
        5.0,
        ge=0.0,
        le=50.0,
        description="Classifier-free guidance; 1 or less turns it off. "
        "Left out, 0 with a distilled model.",
    )
    guidance_rescale: Annotated[float, Wire("Guidance rescale", control=None)] = Field(
        0.0, ge=0.0, le=1.0, description="Rescale of the guided prediction (arXiv 2305.08891)."
    )
    seed: Annotated[int | None, Wire("Seed", cli="--seed -s", control=_OWN, infotext="Seed")] = (
        Field(
            None, ge=0, le=MAX_SEED, description="The same seed, the same picture. Random if unset."
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
        ),
    ] = Field(1, ge=1, le=16, description="Images to draw; image i takes seed + i.")
    sampler: Annotated[
        SamplerName | None,
        Wire("Sampler", help="A name that `sdxl-bento samplers` lists.", infotext="Sampler"),
    ] = Field(None, description="See GET /samplers.")
    strength: Annotated[
        float,
        Wire(
            "Strength",
            group="Image to image",
            control=Control(label="How much of it may change", low=0.05, step=0.05, initial=0.6),
            infotext="Denoising strength",
        ),
    ] = Field(
        0.3, gt=0.0, le=1.0, description="Image-to-image only: how much of the image to redraw."
    )
    refiner: Annotated[
        bool,
        Wire(
            "Refiner",
            group="Refiner",
            cli="--refiner",
            control=Control(label="Let the refiner finish it"),
        ),
    ] = Field(False, description="Let the refiner finish the picture.")
    high_noise_frac: Annotated[
        float,
        Wire(
            "Share of the base model", group="Refiner", control=None, infotext="Refiner switch at"
        ),
    ] = Field(
        0.8,
        gt=0.0,
        lt=1.0,
        description="With the refiner: the share of the noise schedule that the base model runs.",
    )
    aesthetic_score: Annotated[float, Wire("Aesthetic score", group="Refiner", control=None)] = (
        Field(6.0, ge=0.0, le=10.0, description="Refiner conditioning.")
    )
    negative_aesthetic_score: Annotated[
        float, Wire("Negative aesthetic score", group="Refiner", control=None)
    ] = Field(2.5, ge=0.0, le=10.0, description="Refiner conditioning of the negative prompt.")
    original_size: Annotated[Size | None, _size("Original size")] = Field(
        None, description="(height, width) micro-conditioning."
    )
    target_size: Annotated[Size | None, _size("Target size")] = Field(
        None, description="(height, width) micro-conditioning."
    )
    crops_coords_top_left: Annotated[Size, _corner("Crop")] = Field(
        (0, 0), description="(top, left) micro-conditioning."
    )
    negative_original_size: Annotated[Size | None, _size("Negative original size")] = Field(
        None, description="(height, width) micro-conditioning of the negative prompt."
    )
    negative_target_size: Annotated[Size | None, _size("Negative target size")] = Field(
        None, description="(height, width) micro-conditioning of the negative prompt."
    )
    negative_crops_coords_top_left: Annotated[Size, _corner("Negative crop")] = Field(
        (0, 0), description="(top, left) micro-conditioning of the negative prompt."
    )
    loras: Annotated[
        tuple[LoraRef, ...], Wire("LoRAs", cli="--lora -l", help=_LORA, control=_OWN)
    ] = Field((), max_length=8, description="Adapters to mix in.")
    lora_late_ok: Annotated[bool, Wire("Late LoRAs", control=None, a1111="lora_late_ok")] = Field(
        False, description="Start without adapters that are still loading and take them up later."
    )
    slo_ms: Annotated[
        float | None, Wire("Deadline (ms)", group=_SERVICE, control=None, a1111="slo_ms")
    ] = Field(
        None, gt=0, le=3_600_000, description="Answer within this many milliseconds, or refuse."
    )
    priority: Annotated[int, Wire("Priority", group=_SERVICE, control=None, a1111="priority")] = (
        Field(0, ge=-10, le=10, description="Higher runs sooner among equals.")
    )
    degrade_min_steps: Annotated[
        int | None, Wire("Least steps", group=_SERVICE, control=None, a1111="degrade_min_steps")
    ] = Field(None, ge=1, le=200, description="Allow fewer steps, not under this, to meet slo_ms.")
    output_format: Annotated[
        OutputFormat,
        Wire("Format", group="Output", cli="--format --output-format", help=_FORMAT, control=None),
    ] = "png"
    output_quality: Annotated[
        int,
        Wire(
            "Quality",
            group="Output",
            cli="--quality --output-quality",
            control=None,
            openai="output_compression",
        ),
    ] = Field(90, ge=1, le=100, description="Quality of webp and jpeg.")

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
        """Whether the request needs a conditional and an unconditional row (as diffusers does)."""
        return self.guidance_scale > 1.0


class ResolvedParams(GenerateParams):
    """The parameters of a call once a model has been chosen for it: nothing is left unset.

    `diffusion.plan.resolve` makes them. As JSON they are what an answer calls `params`.
    """

    model: str
    width: int
    height: int
    sampler: SamplerName
    seed: int
