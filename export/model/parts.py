"""The parts of a pipeline that are compiled, and how their names are read.

A part's name is its pipeline's role and the network, as in "base/unet_slots". The table of their
inputs and outputs is in `graphs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sdxl_bento.manifest import Role

UNET, UNET_SLOTS, VAE_DECODER = "unet", "unet_slots", "vae_decoder"

# Adapters are trained for the base model, so the refiner has no variant with slots. A UNet stands
# before its variant, which is made from it.
_NETWORKS: Mapping[Role, tuple[str, ...]] = {
    "base": (UNET, UNET_SLOTS, VAE_DECODER),
    "refiner": (UNET, VAE_DECODER),
}


def parts_of(role: Role) -> tuple[str, ...]:
    """The names of the parts of one pipeline, in the order in which they are compiled."""
    return tuple(f"{role}/{network}" for network in _NETWORKS[role])


def role_of(part: str) -> Role:
    """The pipeline that a part belongs to."""
    return "refiner" if part.startswith("refiner/") else "base"


def component_of(part: str) -> str:
    """The folder of the weights that a part is made from: "base/unet_slots" -> "unet"."""
    return "vae" if is_decoder(part) else "unet"


def is_decoder(part: str) -> bool:
    """Whether a part is the decoder of a VAE, and otherwise a UNet."""
    return part.endswith(f"/{VAE_DECODER}")


def has_slots(part: str) -> bool:
    """Whether a part is the UNet that takes adapters by slot."""
    return part.endswith(f"/{UNET_SLOTS}")
