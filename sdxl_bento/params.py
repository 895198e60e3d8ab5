"""What a caller may ask for, with its bounds. Every protocol maps to `GenerateParams`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

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

    prompt: str = Field(
        max_length=MAX_PROMPT_CHARS,
        description="What to draw.",
        examples=["a red circle on a blue background"],
    )
    prompt_2: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Prompt of the second text encoder."
    )
    negative_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description='What to avoid. Unset is not the same as "": SDXL base then takes zeros.',
    )
    negative_prompt_2: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Negative prompt of the second encoder."
    )
    model: str | None = Field(
        None, max_length=200, description="Name of a loaded model; the default one if unset."
    )
    width: int | None = Field(None, ge=64, le=4096, description="Pixels.")
    height: int | None = Field(None, ge=64, le=4096, description="Pixels.")
    num_inference_steps: int = Field(
        25, ge=1, le=200, description="Denoising steps. Left out, 4 with a distilled model."
    )
    guidance_scale: float = Field(
        5.0,
        ge=0.0,
        le=50.0,
        description="Classifier-free guidance; 1 or less turns it off. "
        "Left out, 0 with a distilled model.",
    )
    guidance_rescale: float = Field(
        0.0, ge=0.0, le=1.0, description="Rescale of the guided prediction (arXiv 2305.08891)."
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Random if unset.")
    num_images: int = Field(1, ge=1, le=16, description="Image i is drawn with seed + i.")
    sampler: SamplerName | None = Field(None, description="See GET /samplers.")
    strength: float = Field(
        0.3, gt=0.0, le=1.0, description="Image-to-image only: how much of the image to redraw."
    )
    refiner: bool = Field(False, description="Let the refiner finish the picture.")
    high_noise_frac: float = Field(
        0.8,
        gt=0.0,
        lt=1.0,
        description="With the refiner: the share of the noise schedule that the base model runs.",
    )
    aesthetic_score: float = Field(6.0, ge=0.0, le=10.0, description="Refiner conditioning.")
    negative_aesthetic_score: float = Field(2.5, ge=0.0, le=10.0, description="As above.")
    original_size: Size | None = Field(None, description="(height, width) micro-conditioning.")
    target_size: Size | None = Field(None, description="(height, width) micro-conditioning.")
    crops_coords_top_left: Size = Field((0, 0), description="(top, left) micro-conditioning.")
    negative_original_size: Size | None = Field(None, description="As above, negative branch.")
    negative_target_size: Size | None = Field(None, description="As above, negative branch.")
    negative_crops_coords_top_left: Size = Field((0, 0), description="As above, negative branch.")
    loras: tuple[LoraRef, ...] = Field((), max_length=8, description="Adapters to mix in.")
    lora_late_ok: bool = Field(
        False, description="Start without adapters that are still loading and take them up later."
    )
    slo_ms: float | None = Field(
        None, gt=0, le=3_600_000, description="Answer within this many milliseconds, or refuse."
    )
    priority: int = Field(0, ge=-10, le=10, description="Higher runs sooner among equals.")
    degrade_min_steps: int | None = Field(
        None, ge=1, le=200, description="Allow fewer steps, not under this, to meet slo_ms."
    )
    output_format: OutputFormat = "png"
    output_quality: int = Field(90, ge=1, le=100, description="webp and jpeg only.")

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
