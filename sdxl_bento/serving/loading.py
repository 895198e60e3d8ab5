"""Loads the models of the settings and builds the engine. Runs in the engine's thread."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.backends.choose import Misfit, candidates, runtime
from sdxl_bento.backends.compiled import CompiledBackend
from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.backends.parts import Part, PartOptions
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
from sdxl_bento.manifest import CACHE, BackendInfo, Manifest
from sdxl_bento.serving.adapters import open_adapters
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.warmup import keep_profiles, warm_up

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.engine.executor import Completion

logger = logging.getLogger(f"bentoml.{__name__}")
MIB = 1024 * 1024


def load(
    settings: Settings,
    worker_index: int,
    wake: Callable[[], None],
    on_unit: Callable[[Completion], None] | None = None,
    *,
    warm: bool = True,
) -> tuple[Engine, Mapping[str, Loaded], Callable[[], None]]:
    """Load every model of the settings and build the engine that runs them.

    Args:
        settings: of the service.
        worker_index: the number of this process among the server's, from 0.
        wake: called from another thread when an adapter has been loaded.
        on_unit: called after every batch that the engine has run.
        warm: whether to warm the models up.

    Returns:
        The engine, the models by name, and a function to call at the end: it stores what was
        learned about the costs.

    Raises:
        ConfigurationError: a model is missing or unreadable, or there is no such device.
    """
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    placement = Placement.choose(settings.device, settings.dtype, worker_index)
    cache = PromptCache(settings.prompt_cache_mb * MIB)
    models: dict[str, Loaded] = {}
    for tag, name in zip(settings.model_tags, _names(settings.model_tags), strict=True):
        version, folder = find(tag)
        models[name] = load_folder(name, (tag, version), folder, settings, placement, cache, wake)
    engine = engine_of(models, settings, on_unit)
    if not warm:  # then there are too few calls to learn more about the costs than is known
        return engine, models, lambda: None
    for name, seconds in warm_up(engine, models, placement).items():
        models[name] = replace(models[name], warm_up_seconds=seconds)
        logger.info("%s warmed up in %.1f s", name, seconds)
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

    Raises:
        ConfigurationError: it cannot be read, or no backend that is allowed fits.
    """
    begin = time.perf_counter()
    tag, version = tags
    info, parts = load_parts(folder, settings, placement)
    model = Model.load(name, version, folder, placement, parts)
    adapters = open_adapters(model, settings, wake, compiled=parts)
    served = Served(
        model=model,
        backend=_backend(model, adapters, info, parts, settings.vae_tile_pixels),
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
        info.label if info is not None else served.backend.name,
        str(placement.dtype).removeprefix("torch."),
        placement.device,
    )
    return Loaded(name, tag, facts, served, info, seconds)


def load_parts(
    folder: Path, settings: Settings, placement: Placement
) -> tuple[BackendInfo | None, dict[str, Part]]:
    """The compiled backend that the settings ask for and that fits this machine, with its parts.

    None means that the model is to run eagerly. The log says why other backends are not used.

    Raises:
        ConfigurationError: there is no backend of that name; or none fits, and `allow_fallback` is
            off.
    """
    if settings.backend == "eager":
        return None, {}
    manifest = Manifest.load(folder)
    misfits: list[Misfit] = []
    for info in candidates(manifest, settings.backend, placement, settings.dtype):
        if isinstance(info, Misfit):
            misfits.append(info)
            continue
        try:
            parts = _load_all(folder, manifest, info, settings, placement)
        except (ConfigurationError, OSError, RuntimeError) as error:
            misfits.append(Misfit(info.label, f"it cannot be loaded: {error}"))
            continue
        _log_misfits(manifest.name, misfits, info.label)
        return info, parts
    if misfits and not settings.allow_fallback:
        reasons = "; ".join(map(str, misfits))
        raise ConfigurationError(
            f"no compiled part of {manifest.name} fits ({reasons}), and SDXL_ALLOW_FALLBACK is "
            "off; export the model on this machine, or allow eager"
        )
    _log_misfits(manifest.name, misfits, "eager")
    return None, {}


def _load_all(
    folder: Path, manifest: Manifest, info: BackendInfo, settings: Settings, placement: Placement
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    cache = _writable(folder / CACHE)
    try:
        for part, path in info.artifacts.items():
            role, _, name = part.partition("/")
            pipeline = manifest.refiner if role == "refiner" else manifest.base
            assert pipeline is not None
            component = "vae" if name == "vae_decoder" else "unet"
            options = PartOptions(
                info,
                placement.device,
                weights=folder / pipeline.path / component,
                cache=cache,
                threads=settings.threads,
                kernels=settings.openvino_kernels,
            )
            parts[part] = runtime(info.backend).load(folder / path, options)
    except BaseException:
        for loaded in parts.values():
            loaded.unload()
        raise
    return parts


def _writable(folder: Path) -> Path | None:
    """The folder, which is created if it is missing; None if the model is read-only."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _log_misfits(name: str, misfits: Sequence[Misfit], chosen: str) -> None:
    for each in misfits:
        logger.warning(
            "%s: %s is not used: %s; %s runs instead", name, each.label, each.reason, chosen
        )


def _backend(
    model: Model,
    adapters: LoraPool,
    info: BackendInfo | None,
    parts: Mapping[str, Part],
    tile_pixels: int,
) -> Backend:
    if info is None:
        _apply_attention(model)
        return EagerBackend(model, adapters, tile_pixels)
    return CompiledBackend(model, adapters, info, parts, tile_pixels)


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
