"""From tags in the settings to loaded models and an engine. Runs in the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.diffusion.conditioning import Conditioner, PromptCache
from sdxl_bento.diffusion.lora import LoraPool
from sdxl_bento.diffusion.model import Model, Placement
from sdxl_bento.diffusion.plan import ModelFacts
from sdxl_bento.diffusion.runner import Runner, Served
from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.results import ModelSummary
from sdxl_bento.warmup import keep_profiles, warm_up

if TYPE_CHECKING:
    from torch import nn

    from sdxl_bento.config import Settings

logger = logging.getLogger("bentoml.sdxl_bento.loading")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and what planning and clients need to know of it."""

    name: str
    asked: str  # the tag in the settings, which may say `latest`; the model's own is exact
    facts: ModelFacts
    served: Served
    seconds: float

    def summary(self, *, default: bool) -> ModelSummary:
        model, manifest = self.served.model, self.facts.manifest
        return ModelSummary(
            name=self.name,
            tag=model.tag,
            default=default,
            default_width=manifest.base.width,
            default_height=manifest.base.height,
            size_multiple=manifest.size_limits.multiple,
            has_refiner=model.refiner is not None,
            dtype=str(model.placement.dtype).removeprefix("torch."),
            backend=self.served.backend.name,
            device=str(model.placement.device),
        )


def load(
    settings: Settings, worker_index: int, wake: Callable[[], None]
) -> tuple[Engine, Mapping[str, Loaded], Callable[[], None]]:
    """Load every model of the settings and make the engine that runs them, warmed up.

    The third is to be called at the end: it keeps what was learned of the costs.

    Raises:
        ConfigurationError: a model is missing or unreadable, or the device is not there.
    """
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    placement = Placement.choose(settings.device, settings.dtype, worker_index)
    cache = PromptCache(settings.prompt_cache_mb * MIB)
    models: dict[str, Loaded] = {}
    for tag, name in zip(settings.model_tags, _names(settings.model_tags), strict=True):
        models[name] = _load_one(name, tag, settings, placement, cache, wake)
    engine = Engine(
        Runner({name: loaded.served for name, loaded in models.items()}),
        Limits(
            max_rows=settings.max_batch_rows,
            max_pixels=settings.max_batch_pixels,
            max_running=settings.max_running,
            ageing_s=settings.ageing_s,
        ),
        QueueLimits(
            max_requests=settings.max_queue,
            max_pixels=int(settings.max_queue_megapixels * 1e6),
        ),
    )
    seconds = warm_up(engine, models, placement)
    logger.info("warmed up in %.1f s", seconds)
    return engine, models, partial(keep_profiles, engine, models, placement)


def find(tag: str) -> tuple[str, Path]:
    """The exact tag of a stored model, with its version, and its folder.

    Raises:
        ConfigurationError: the store has no such model.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        stored = bentoml.models.get(tag)
    except BentoMLException as error:
        raise ConfigurationError(
            f"the model {tag} is not in the store ({error}); `python -m export embedded` makes "
            "the one that ships with this project"
        ) from error
    return str(stored.tag), Path(stored.path)


def folder_of(tag: str) -> Path:
    """The folder of a stored model. Raises ConfigurationError as `find` does."""
    return find(tag)[1]


def _load_one(
    name: str,
    tag: str,
    settings: Settings,
    placement: Placement,
    cache: PromptCache,
    wake: Callable[[], None],
) -> Loaded:
    begin = time.perf_counter()
    version, folder = find(tag)
    model = Model.load(name, version, folder, placement)
    adapters = LoraPool(
        _lora_targets(model), budget_bytes=settings.lora_cache_mb * MIB, on_loaded=wake
    )
    for lora in model.manifest.loras:
        adapters.register(lora.name, folder / lora.path, pinned=lora.name in settings.lora_pinned)
    if settings.lora_dir is not None:
        adapters.scan(settings.lora_dir)
    served = Served(
        model=model,
        backend=EagerBackend(model, adapters, settings.vae_tile_pixels),
        adapters=adapters,
        conditioner=Conditioner(model, adapters, cache),
    )
    refiner = model.refiner.scheduler_config if model.refiner is not None else None
    facts = ModelFacts(name, model.manifest, model.base.scheduler_config, refiner)
    seconds = time.perf_counter() - begin
    logger.info(
        "%s loaded in %.1f s: %s, %s on %s",
        version,
        seconds,
        served.backend.name,
        str(placement.dtype).removeprefix("torch."),
        placement.device,
    )
    return Loaded(name, tag, facts, served, seconds)


def _lora_targets(model: Model) -> dict[str, nn.Module]:
    targets: dict[str, nn.Module] = {"unet": model.base.unet}
    names = ("text_encoder", "text_encoder_2")[-len(model.base.text_encoders) :]
    targets.update(zip(names, model.base.text_encoders, strict=True))
    return targets


def _names(tags: tuple[str, ...]) -> list[str]:
    """Short names (a tag without its version), or whole tags where short ones collide."""
    short = [tag.partition(":")[0] for tag in tags]
    return [name if short.count(name) == 1 else tag for name, tag in zip(short, tags, strict=True)]
