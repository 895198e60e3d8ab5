"""From what a caller asked for to the stages that draw it, or a refusal that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdxl_bento.diffusion.backend import Mix
from sdxl_bento.diffusion.schedules import default_sampler
from sdxl_bento.diffusion.solvers import SolverTable, build_table
from sdxl_bento.engine.request import Phase, Stage
from sdxl_bento.errors import InvalidInput
from sdxl_bento.manifest import Manifest
from sdxl_bento.order import Order, Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams

# What distilled models are published for: few steps, and no guidance, which is in their weights
# (SDXL Turbo, arXiv 2311.17042; SDXL Lightning, arXiv 2402.13929; LCM, arXiv 2310.04378).
DISTILLED_STEPS = 4
DISTILLED_GUIDANCE = 0.0


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model, without its weights."""

    name: str
    manifest: Manifest
    base_scheduler: Mapping[str, object]
    refiner_scheduler: Mapping[str, object] | None


@dataclass(frozen=True)
class Job:
    """One picture to draw: the payload that travels in an engine `Request`.

    `order` is for this picture alone, with its own seed. `tables` holds the solver of each
    denoising stage.
    """

    order: Resolved
    tables: Mapping[Stage, SolverTable]
    mix: Mix
    wants_preview: bool = False

    @property
    def params(self) -> ResolvedParams:
        return self.order.params

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The denoising stages, in order."""
        return tuple(self.tables)

    @property
    def last_stage(self) -> Stage:
        """The stage whose pipeline decodes."""
        return self.stages[-1]

    @property
    def rows(self) -> int:
        return 2 if self.params.uses_guidance else 1

    def phases(self) -> tuple[Phase, ...]:
        """The job as units of work for the engine."""
        image = [Phase(Stage.IMAGE, 1, 1)] if self.order.image is not None else []
        steps = [Phase(stage, len(table), self.rows) for stage, table in self.tables.items()]
        return (Phase(Stage.ENCODE, 1, self.rows), *image, *steps, Phase(Stage.DECODE, 1, 1))

    def for_image(self, index: int) -> Job:
        """The job of image `index` of the call: the next seed."""
        return replace(self, order=self.order.single(index))


def resolve(order: Order, facts: ModelFacts, seed: int) -> Resolved:
    """Decide what the caller has left to the model. `seed` is taken if the caller gave none.

    Steps and guidance that the caller left out are those of the model's variant.

    Raises:
        InvalidInput: a size that the model does not draw.
    """
    params, manifest = order.params, facts.manifest
    width, height = _size(order, facts)
    decided = {
        "model": facts.name,
        "width": width,
        "height": height,
        "sampler": params.sampler or default_sampler(facts.base_scheduler),
        "seed": seed if params.seed is None else params.seed,
        **_variant_defaults(params, manifest),
    }
    resolved = ResolvedParams.model_validate(dict(params) | decided)
    return Resolved(order.task, resolved, order.pictures)


def _size(order: Order, facts: ModelFacts) -> tuple[int, int]:
    """Width and height: as asked for, else those of the picture that is redrawn, else the model's.

    The size of a picture is taken to the nearest multiple that the model draws. If only one side
    was asked for, the other follows from the picture's aspect ratio.

    Raises:
        InvalidInput: the model does not draw this size. If it is the picture's, `field` is "image".
    """
    params, limits = order.params, facts.manifest.size_limits
    for field, side in (("width", params.width), ("height", params.height)):
        if side is not None and not limits.allows(side, side):
            raise InvalidInput(
                field,
                side,
                f"a multiple of {limits.multiple} from {limits.min} to {limits.max} "
                f"for the model {facts.name}",
            )
    if order.image is None:
        base = facts.manifest.base
        return params.width or base.width, params.height or base.height
    width, height = order.image.size
    scale = 1.0
    if params.width is not None:
        scale = params.width / width
    elif params.height is not None:
        scale = params.height / height

    def nearest(side: int) -> int:
        return int(side * scale / limits.multiple + 0.5) * limits.multiple

    size = params.width or nearest(width), params.height or nearest(height)
    if not limits.allows(*size):
        raise InvalidInput(
            "image",
            f"{width}x{height}",
            f"a picture whose sides are from {limits.min} to {limits.max} pixels, to the nearest "
            f"multiple of {limits.multiple}, for the model {facts.name}; "
            "or width and height beside it",
        )
    return size


def _variant_defaults(params: GenerateParams, manifest: Manifest) -> dict[str, object]:
    """What a distilled model has in place of the defaults that `params` was made with."""
    if manifest.variant == "base":
        return {}
    defaults = {
        "num_inference_steps": max(DISTILLED_STEPS, params.degrade_min_steps or 0),
        "guidance_scale": DISTILLED_GUIDANCE,
    }
    return {name: value for name, value in defaults.items() if name not in params.model_fields_set}


def plan(order: Resolved, facts: ModelFacts, *, wants_preview: bool = False) -> Job:
    """The job that draws `order`, by its task and whether the refiner finishes the picture.

    Timestep arithmetic follows diffusers' pipelines (`denoising_end`, `denoising_start`,
    `strength`), so that the same request is the same image.

    Raises:
        InvalidInput: no refiner, an empty stage, or a sampler that cannot do it.
    """
    params = order.params
    steps = params.num_inference_steps
    begin = _begin(params) if order.redraws else 0
    tables: dict[Stage, SolverTable] = {}
    if order.task == "refine":
        table = build_table(params.sampler, _refiner_config(facts), steps)
        tables[Stage.REFINE] = table.part(begin, steps)
    else:
        table = build_table(params.sampler, facts.base_scheduler, steps)
        if params.refiner:
            tables = _share_out(params, facts, table, begin)
        else:
            tables[Stage.BASE] = table.part(begin, len(table))
    mix = tuple(sorted((lora.name, lora.scale) for lora in params.loras if lora.scale))
    return Job(order, tables, mix, wants_preview)


def _share_out(
    params: ResolvedParams, facts: ModelFacts, base: SolverTable, begin: int
) -> dict[Stage, SolverTable]:
    """Ensemble of experts: the base model above the cut of the noise, the refiner below it."""
    refiner = build_table(base.sampler, _refiner_config(facts), params.num_inference_steps)
    train_steps = int(str(facts.base_scheduler.get("num_train_timesteps", 1000)))
    cut = round(train_steps - params.high_noise_frac * train_steps)
    end = int((base.timesteps >= cut).sum())
    resume = len(refiner) - int((refiner.timesteps < cut).sum())
    if end <= begin or resume >= len(refiner):
        raise InvalidInput(
            "high_noise_frac",
            params.high_noise_frac,
            f"a share that leaves steps to both models ({end - begin} of "
            f"{params.num_inference_steps} would go to the base model, "
            f"{len(refiner) - resume} to the refiner)",
        )
    return {Stage.BASE: base.part(begin, end), Stage.REFINE: refiner.part(resume, len(refiner))}


def _begin(params: ResolvedParams) -> int:
    """First step of an image-to-image run: `strength` of the steps remain."""
    steps = params.num_inference_steps
    remaining = min(int(steps * params.strength), steps)
    if remaining < 1:
        raise InvalidInput(
            "strength", params.strength, f"at least {1 / steps:.3g}, so that one step remains"
        )
    return steps - remaining


def _refiner_config(facts: ModelFacts) -> Mapping[str, object]:
    if facts.refiner_scheduler is None:
        raise InvalidInput("refiner", True, f"false: the model {facts.name} has no refiner")
    return facts.refiner_scheduler
