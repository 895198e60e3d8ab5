"""The adapters (LoRA) that requests for a model may name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from sdxl_bento.backends.slots import SlotLayout
from sdxl_bento.diffusion.folder import check_link
from sdxl_bento.diffusion.lora.pool import LoraPool

if TYPE_CHECKING:
    from torch import nn

    from sdxl_bento.config import Settings
    from sdxl_bento.diffusion.model import Model

MIB = 1024 * 1024


def open_adapters(
    model: Model, settings: Settings, wake: Callable[[], None], *, compiled: Collection[str] = ()
) -> LoraPool:
    """The adapters of the model's own folder and of `lora_dir`.

    Args:
        model: the loaded model.
        settings: of the service.
        wake: called from another thread when an adapter has been loaded.
        compiled: names of the model's compiled parts.

    Raises:
        ConfigurationError: a file of the model's is missing, or a link that leads out of it.
    """
    # A compiled UNet takes adapters only in the layers that have slots for them.
    layers = {"unet": SlotLayout(model.base.unet).columns} if "base/unet" in compiled else None
    budget = settings.lora_cache_mb * MIB
    pool = LoraPool(
        _lora_targets(model),
        budget_bytes=budget,
        on_loaded=wake,
        layers=layers,
        pinned=settings.lora_pinned,
    )
    for lora in model.manifest.loras:
        check_link(model.folder / lora.path, model.folder)
        pool.register(lora.name, model.folder / lora.path)
    if settings.lora_dir is not None:
        pool.scan(settings.lora_dir)
    pool.load_pinned()
    return pool


def _lora_targets(model: Model) -> dict[str, nn.Module]:
    """The networks that adapters change, by their names in LoRA files.

    A pipeline with a single text encoder, such as the refiner's, has the second one.
    """
    targets: dict[str, nn.Module] = {"unet": model.base.unet}
    names = ("text_encoder", "text_encoder_2")[-len(model.base.text_encoders) :]
    targets.update(zip(names, model.base.text_encoders, strict=True))
    return targets
