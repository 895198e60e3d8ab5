"""Which of a model's backends fits this machine, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_bento.backends.parts import runtime as runtime  # re-exported
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendInfo, Manifest

if TYPE_CHECKING:
    import torch

    from sdxl_bento.diffusion.model import Placement


@dataclass(frozen=True)
class Misfit:
    """A backend that cannot be used here, and the reason."""

    label: str
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"


def candidates(
    manifest: Manifest, wanted: str, placement: Placement, dtype: str
) -> Iterator[BackendInfo | Misfit]:
    """The model's compiled backends in the order of the manifest, the fastest first.

    Args:
        manifest: of the model.
        wanted: "auto" for all, or a backend's name or label.
        placement: where the model is to run.
        dtype: the one that was asked for, or "auto".

    Raises:
        ConfigurationError: the model has no backend of that name.
    """
    infos = [info for info in manifest.backends if info.backend != "eager"]
    chosen = [info for info in infos if wanted in ("auto", info.backend, info.label)]
    if wanted != "auto" and not chosen:
        have = ", ".join(["eager", *(info.label for info in infos)])
        raise ConfigurationError(
            f"SDXL_BACKEND is {wanted!r}, and {manifest.name} was exported for: {have}; "
            f"export it with --target, or set SDXL_BACKEND=auto"
        )
    for info in chosen:
        reason = misfit(info, placement, dtype)
        yield Misfit(info.label, reason) if reason else info


def misfit(info: BackendInfo, placement: Placement, dtype: str) -> str:
    """Why a compiled backend does not fit; empty if it does."""
    if placement.mode not in ("cpu", "cuda"):
        return f"SDXL_DEVICE is {placement.mode}, which moves weights that a compiled part has not"
    here = device_name(placement.device)
    if info.device not in ("any", here):
        return f"device: built for {info.device}, here is {here}"
    if dtype not in ("auto", info.dtype):
        return f"dtype: built for {info.dtype}, SDXL_DTYPE is {dtype}"
    try:
        versions = runtime(info.backend).versions()
    except ImportError as error:
        return f"package: {error.name or error} is not installed"
    differing = [
        f"{name}: built with {wanted}, here is {versions.get(name, 'none')}"
        for name, wanted in info.versions.items()
        if versions.get(name) != wanted
    ]
    return "; ".join(differing)


def device_name(device: torch.device) -> str:
    """A device as manifests name it: "cpu", or "cuda:" with its compute capability."""
    if device.type != "cuda":
        return device.type
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:{major}.{minor}"
