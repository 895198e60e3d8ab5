"""The contract of a backend: how one model's UNets and VAE decoder run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from sdxl_bento.engine.request import Stage

if TYPE_CHECKING:
    import torch

# (adapter name, scale) pairs of one row, sorted; empty for the model as it is
Mix = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class UNetInputs:
    """The inputs of R rows, each with its own timestep and conditioning.

    Attributes:
        sample: [R, 4, h, w], latents scaled as the row's sampler wants them.
        timestep: [R] float32.
        encoder_hidden_states: [R, 77, C].
        text_embeds: [R, P], pooled.
        time_ids: [R, 6] for the base model, [R, 5] for the refiner.
        mixes: R adapter mixes.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    encoder_hidden_states: torch.Tensor
    text_embeds: torch.Tensor
    time_ids: torch.Tensor
    mixes: Sequence[Mix]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All inputs but the mixes, by name. The first side of each is its row."""
        names = (field.name for field in fields(self) if field.name != "mixes")
        return {name: getattr(self, name) for name in names}


class Backend(Protocol):
    """Runs the parts of one model that are worth compiling."""

    name: str

    def denoise(self, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
        """The UNet of `stage` (BASE or REFINE): [R, 4, h, w], its raw prediction.

        Raises:
            DeviceOutOfMemory, torch.OutOfMemoryError: so many rows do not fit the device.
        """
        ...

    def decode(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        """The VAE decoder of the pipeline that ran `stage`.

        Args:
            latents: [B, 4, h, w] float32, as the sampler left them (not yet unscaled).

        Returns:
            [B, 3, 8h, 8w] float32, in -1 to 1 but for rounding.
        """
        ...

    def warm_up(self) -> None:
        """Run whatever has a shape of its own once, before the first request.

        Raises:
            SDXLError, RuntimeError: it does not run on this machine.
        """
        ...

    def unload(self) -> None:
        """Give the device's memory back. The backend cannot be used any more."""
        ...
