"""Provenance: everything about model and machine that a picture's pixels depend on."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sdxl_bento.backends.choose import device_name
from sdxl_bento.serving.results import Provenance

if TYPE_CHECKING:
    from sdxl_bento.config import Settings
    from sdxl_bento.params import ResolvedParams
    from sdxl_bento.serving.loaded import Loaded


def provenance_of(loaded: Loaded, params: ResolvedParams, settings: Settings) -> Provenance:
    """The provenance of pictures that the model `loaded` draws with `params`.

    Reads the files of adapters that are not in memory. Raises AdapterNotFound.
    """
    import torch

    model = loaded.served.model
    summary = loaded.summary(default=False)
    loras = loaded.served.adapters.fingerprints(lora.name for lora in params.loras)
    return Provenance(
        model=model.tag,
        artifact=sha256(model.manifest.model_dump_json().encode()).hexdigest(),
        backend=summary.backend,
        dtype=summary.dtype,
        device=device_name(model.placement.device),
        torch=torch.__version__,
        options=tuple(settings.pixel_options.items()),
        loras=tuple(loras.items()),
    )
