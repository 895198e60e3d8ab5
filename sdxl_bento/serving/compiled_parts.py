"""Chooses the compiled backend of a model and loads its parts: whole, fitting, as exported."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sdxl_bento.backends.choose import Misfit, candidates, runtime
from sdxl_bento.backends.parts import Part, PartOptions
from sdxl_bento.diffusion.folder import check_link
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import CACHE, BackendInfo, Manifest

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.diffusion.model import Placement
    from sdxl_bento.integrity import Item
    from sdxl_bento.serving.verification import ModelCheck

logger = logging.getLogger(f"bentoml.{__name__}")

# A damaged graph or machine code can end the process that loads it, so these are checked before.
# Larger files hold little but weights, which are checked while they are loaded.
GRAPH_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class Chosen:
    """What runs a model.

    Attributes:
        info: the compiled backend; None if the model runs eagerly.
        parts: its loaded parts.
        misfits: the backends that were tried before, with the reasons.
    """

    info: BackendInfo | None
    parts: dict[str, Part] = field(default_factory=dict)
    misfits: tuple[Misfit, ...] = ()

    @property
    def label(self) -> str:
        """The label of the backend."""
        return self.info.label if self.info is not None else "eager"

    def unload(self) -> None:
        """Give the memory of the parts back."""
        for part in self.parts.values():
            part.unload()


def load_parts(
    folder: Path,
    manifest: Manifest,
    settings: Settings,
    placement: Placement,
    check: ModelCheck,
    known: Sequence[Misfit] = (),
) -> Chosen:
    """The compiled backend that the settings ask for and that fits this machine, with its parts.

    Args:
        folder: of the model.
        manifest: of the model.
        settings: of the service.
        placement: where the model is to run.
        check: of the model's files.
        known: backends that have been tried and must not be tried again.

    Raises:
        ConfigurationError: there is no backend of that name; or none fits, and `allow_fallback` is
            off.
    """
    if settings.backend == "eager":
        return Chosen(None)
    misfits = list(known)
    tried = {misfit.label for misfit in known}
    for info in candidates(manifest, settings.backend, placement, settings.dtype):
        if info.label in tried:
            continue
        if isinstance(info, Misfit):
            misfits.append(info)
            continue
        try:
            parts = _load_all(folder, manifest, info, settings, placement, check)
        except (ConfigurationError, OSError, RuntimeError) as error:
            # Clients may read the reason, and need not know where the model is.
            reason = str(error).replace(f"{folder}/", "").replace(str(folder), "the model")
            misfits.append(Misfit(info.label, f"it cannot be loaded: {reason}"))
            continue
        return Chosen(info, parts, tuple(misfits))
    if misfits and not settings.allow_fallback:
        reasons = "; ".join(map(str, misfits))
        raise ConfigurationError(
            f"no compiled part of {manifest.name} fits ({reasons}), and SDXL_ALLOW_FALLBACK is "
            "off; export the model on this machine, or allow eager"
        )
    return Chosen(None, {}, tuple(misfits))


def log_misfits(name: str, chosen: Chosen) -> None:
    """Say why other backends are not used."""
    for each in chosen.misfits:
        logger.warning(
            "%s: %s is not used: %s; %s runs instead", name, each.label, each.reason, chosen.label
        )


def _load_all(
    folder: Path,
    manifest: Manifest,
    info: BackendInfo,
    settings: Settings,
    placement: Placement,
    check: ModelCheck,
) -> dict[str, Part]:
    def graphs(item: Item) -> bool:
        return _is_part(item, info) and item.bytes <= GRAPH_BYTES

    def weights(item: Item) -> bool:
        return _is_part(item, info) and item.bytes > GRAPH_BYTES

    for file in _files(folder, manifest, info):
        check_link(file, folder)
    check.require(graphs)
    check.begin(weights)
    parts: dict[str, Part] = {}
    cache = _writable(folder / CACHE)
    try:
        for part, path in info.artifacts.items():
            options = PartOptions(
                info,
                placement.device,
                weights=_weights(folder, manifest, part),
                cache=cache,
                threads=settings.threads,
                kernels=settings.openvino_kernels,
                verify=check.checks_caches,
            )
            parts[part] = runtime(info.backend).load(folder / path, options)
        check.require(weights)
    except BaseException:
        for loaded in parts.values():
            loaded.unload()
        raise
    return parts


def _is_part(item: Item, info: BackendInfo) -> bool:
    return item.name.startswith(f"compiled/{info.label}/")


def _weights(folder: Path, manifest: Manifest, part: str) -> Path:
    """The folder of the component that a part was compiled from."""
    role, _, name = part.partition("/")
    pipeline = manifest.refiner if role == "refiner" else manifest.base
    assert pipeline is not None
    return folder / pipeline.path / ("vae" if name == "vae_decoder" else "unet")


def _files(folder: Path, manifest: Manifest, info: BackendInfo) -> Collection[Path]:
    """What the parts of a backend may be loaded from."""
    files = {folder / path for path in info.artifacts.values()}
    for place in {path.parent for path in files}:
        files |= {place, *place.glob("*")}
    for part in info.artifacts:
        files.update(_weights(folder, manifest, part).glob("*.safetensors"))
    return files


def _writable(folder: Path) -> Path | None:
    """The folder, which is created if it is missing; None if the model is read-only."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
