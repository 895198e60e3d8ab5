"""Loads the models of the settings and builds the engine. Runs in the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.backends.choose import Misfit
from sdxl_bento.backends.compiled import CompiledBackend
from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.backends.probes import failed_probe
from sdxl_bento.diffusion.backend import Backend
from sdxl_bento.diffusion.conditioning import Conditioner, PromptCache
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.model import Model, Placement
from sdxl_bento.diffusion.plan import ModelFacts
from sdxl_bento.diffusion.runner import Runner, Served
from sdxl_bento.engine.admission import QueueLimits
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.scheduler import Limits
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import Manifest
from sdxl_bento.serving.adapters import open_adapters
from sdxl_bento.serving.compiled_parts import Chosen, load_parts, log_misfits
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.verification import ModelCheck, Verification
from sdxl_bento.serving.warmup import keep_profiles, warm_up

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.engine.executor import Completion
    from sdxl_bento.integrity import Item
    from sdxl_bento.manifest import Role

logger = logging.getLogger(f"bentoml.{__name__}")
MIB = 1024 * 1024


def load(
    settings: Settings,
    worker_index: int,
    wake: Callable[[], None],
    on_unit: Callable[[Completion], None] | None = None,
    *,
    warm: bool = True,
    verification: Verification | None = None,
) -> tuple[Engine, Mapping[str, Loaded], Callable[[], None]]:
    """Load every model of the settings and build the engine that runs them.

    Args:
        settings: of the service.
        worker_index: the number of this process among the server's, from 0.
        wake: called from another thread when an adapter has been loaded.
        on_unit: called after every batch that the engine has run.
        warm: whether to warm the models up.
        verification: of the models' files; None makes one as the settings say.

    Returns:
        The engine, the models by name, and a function to call at the end: it stores what was
        learned about the costs.

    Raises:
        ConfigurationError: a model is missing, unreadable or damaged, or there is no such device.
    """
    import torch

    verification = verification or Verification(settings.verify)

    if settings.threads:
        torch.set_num_threads(settings.threads)
    placement = Placement.choose(settings.device, settings.dtype, worker_index)
    cache = PromptCache(settings.prompt_cache_mb * MIB)
    models: dict[str, Loaded] = {}
    for tag, name in zip(settings.model_tags, _names(settings.model_tags), strict=True):
        version, folder = find(tag)
        models[name] = load_folder(
            name, (tag, version), folder, settings, placement, cache, wake, verification
        )
    engine = engine_of(models, settings, on_unit)
    if not warm:  # then there are too few calls to learn more about the costs than is known
        verification.start()
        return engine, models, lambda: None
    for name, seconds in warm_up(engine, models, placement).items():
        models[name] = replace(models[name], warm_up_seconds=seconds)
        logger.info("%s warmed up in %.1f s", name, seconds)
    verification.start()
    return engine, models, partial(keep_profiles, engine, models, placement)


def engine_of(
    models: Mapping[str, Loaded],
    settings: Settings,
    on_unit: Callable[[Completion], None] | None = None,
) -> Engine:
    """An engine that runs these models, and calls `on_unit` after every batch."""
    return Engine(
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
        on_unit=on_unit,
    )


def find(tag: str) -> tuple[str, Path]:
    """The exact tag and the folder of a stored model.

    Raises:
        ConfigurationError: the store has no such model.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        stored = bentoml.models.get(tag)
    except BentoMLException as error:
        raise ConfigurationError(
            f"the model {tag} is not in the store ({error}); `python -m export embedded` creates "
            "the one that ships with this project"
        ) from error
    return str(stored.tag), Path(stored.path)


def folder_of(tag: str) -> Path:
    """The folder of a stored model. Raises ConfigurationError as `find` does."""
    return find(tag)[1]


def load_folder(
    name: str,
    tags: tuple[str, str],
    folder: Path,
    settings: Settings,
    placement: Placement,
    cache: PromptCache,
    wake: Callable[[], None],
    verification: Verification | None = None,
) -> Loaded:
    """Load the model that `export` wrote to `folder`.

    Args:
        name: its name in requests.
        tags: its tag in the settings, and its exact tag.
        folder: of the model.
        settings: of the service.
        placement: where it is to run.
        cache: of encoded prompts, shared by all models.
        wake: called from another thread when an adapter has been loaded.
        verification: of the models' files; None makes one as the settings say.

    Raises:
        ConfigurationError: it cannot be read, is damaged, or no backend that is allowed fits.
    """
    begin = time.perf_counter()
    tag, version = tags
    manifest = Manifest.load(folder)
    check = (verification or Verification(settings.verify)).of(folder, manifest)
    try:
        check.require_manifest()
        model, chosen = _load_checked((name, version), folder, manifest, settings, placement, check)
    finally:
        check.close()
    log_misfits(manifest.name, chosen)
    adapters = open_adapters(model, settings, wake, compiled=chosen.parts)
    served = Served(
        model=model,
        backend=_backend(model, adapters, chosen, settings.vae_tile_pixels),
        adapters=adapters,
        conditioner=Conditioner(model, adapters, cache),
    )
    model.slice(attention=settings.attention_slicing, vae=settings.vae_slicing)
    refiner = model.refiner.scheduler_config if model.refiner is not None else None
    facts = ModelFacts(name, model.manifest, model.base.scheduler_config, refiner)
    seconds = time.perf_counter() - begin
    logger.info(
        "%s loaded in %.1f s: %s, %s on %s",
        version,
        seconds,
        chosen.label,
        str(placement.dtype).removeprefix("torch."),
        placement.device,
    )
    return Loaded(name, tag, facts, served, chosen.info, seconds, misfits=chosen.misfits)


def _load_checked(
    names: tuple[str, str],
    folder: Path,
    manifest: Manifest,
    settings: Settings,
    placement: Placement,
    check: ModelCheck,
) -> tuple[Model, Chosen]:
    """The model with the first backend whose files are whole and whose parts pass their check."""
    misfits: tuple[Misfit, ...] = ()
    while True:
        chosen = load_parts(folder, manifest, settings, placement, check, misfits)
        model = _load_model(names, folder, manifest, placement, check, chosen)
        reason = _failed_check(model, chosen, placement)
        if not reason:
            return model, chosen
        misfits = (*chosen.misfits, Misfit(chosen.label, reason))
        chosen.unload()
        model.unload()


def _load_model(
    names: tuple[str, str],
    folder: Path,
    manifest: Manifest,
    placement: Placement,
    check: ModelCheck,
    chosen: Chosen,
) -> Model:
    """The components that are not compiled, while their files are being checked."""
    # TorchInductor's packages have no weights of their own: they use those of the components.
    from_components = chosen.info is None or chosen.info.backend == "inductor"
    compiled = set() if from_components else set(chosen.parts)

    def wanted(item: Item) -> bool:
        return _is_loaded(item, manifest, compiled)

    check.begin(wanted)
    try:
        model = Model.load(*names, folder, placement, chosen.parts)
    except Exception:
        check.require(wanted)  # what is wrong with the files is told before what came of it
        raise
    check.require(wanted)
    return model


def _is_loaded(item: Item, manifest: Manifest, compiled: set[str]) -> bool:
    """Whether a file is read if these parts are compiled, other than by their runtime."""
    if item.name.startswith("compiled/"):
        return False
    for role, pipeline in manifest.pipelines.items():
        unet = f"{pipeline.path}/unet"
        if f"{role}/unet" in compiled and (
            item.name == unet or (item.name.startswith(f"{unet}/") and "safetensors" in item.name)
        ):
            return False
    return True


def _failed_check(model: Model, chosen: Chosen, placement: Placement) -> str:
    if chosen.info is None:
        return ""
    unets: dict[Role, object] = {"base": model.base.unet}
    if model.refiner is not None:
        unets["refiner"] = model.refiner.unet
    return failed_probe(
        chosen.info,
        model.folder,
        chosen.parts,
        unets,
        model.manifest.base.latent_channels,
        placement.device,
    )


def _backend(
    model: Model,
    adapters: LoraPool,
    chosen: Chosen,
    tile_pixels: int,
) -> Backend:
    if chosen.info is None:
        _apply_attention(model)
        return EagerBackend(model, adapters, tile_pixels)
    return CompiledBackend(model, adapters, chosen.info, chosen.parts, tile_pixels)


def _apply_attention(model: Model) -> None:
    """Use the attention backend that was the fastest at export, if this machine has it."""
    from sdxl_bento.backends.attention import apply_attention

    name = model.manifest.backends[0].attention
    if name is None:
        return
    try:
        for pipeline in (model.base, model.refiner):
            if pipeline is not None:
                apply_attention(pipeline.unet, name)
    except ConfigurationError as error:
        logger.warning("%s: PyTorch's own attention is used: %s", model.name, error)


def _names(tags: tuple[str, ...]) -> list[str]:
    """Names for requests: tags without their versions, or whole tags if that is ambiguous."""
    short = [tag.partition(":")[0] for tag in tags]
    return [name if short.count(name) == 1 else tag for name, tag in zip(short, tags, strict=True)]
