"""What a pipeline's folder may contain: its components, their classes, their files.

The export reads a source by these lists, and the service what the export has written: a class that
is not named here is never looked up, and a file that is not named here is never opened. Both raise
their own errors; the functions below say what is wrong in words, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdxl_bento.manifest import Role

Library = Literal["diffusers", "transformers"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that can run code when they are loaded."""

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

# Schedulers with a noise schedule like SDXL's (betas and a prediction type). Only the schedule is
# read from their config; the sampler is chosen by each request.
SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class Kind:
    """How one component is stored. `stem` begins the names of weight files; None: it has none."""

    library: Library
    classes: tuple[str, ...]
    config: str
    stem: str | None = None
    extra_files: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """The name of its weight file, if these are not in shards."""
        return f"{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """The name of the file that lists its shards."""
        return f"{self.stem}.safetensors.index.json"


_TOKENIZER = Kind(
    "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json",
    extra_files=TOKENIZER_FILES,
)  # fmt: skip

KINDS: Mapping[str, Kind] = {
    "scheduler": Kind("diffusers", SCHEDULERS, "scheduler_config.json"),
    "text_encoder": Kind("transformers", ("CLIPTextModel",), "config.json", "model"),
    "text_encoder_2": Kind(
        "transformers", ("CLIPTextModelWithProjection",), "config.json", "model"
    ),
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "unet": Kind("diffusers", ("UNet2DConditionModel",), "config.json", "diffusion_pytorch_model"),
    "vae": Kind("diffusers", ("AutoencoderKL",), "config.json", "diffusion_pytorch_model"),
}

COMPONENTS: Mapping[Role, tuple[str, ...]] = {
    "base": (
        "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
    ),
    "refiner": ("scheduler", "text_encoder_2", "tokenizer_2", "unet", "vae"),
}  # fmt: skip


TIME_IDS: Mapping[Role, int] = {"base": 6, "refiner": 5}
"""How many time ids a pipeline's UNet takes (arXiv 2307.01952, section 2)."""


def unknown_class(name: str, library: str, class_name: str) -> str:
    """The classes that the component `name` may have, if this is none of them; else empty."""
    kind = KINDS.get(name)
    if kind is None:
        return f"only {', '.join(KINDS)}"
    if library != kind.library or class_name not in kind.classes:
        return f"{name} of {kind.library}: {' or '.join(kind.classes)}"
    return ""


def custom_code(config: Mapping[str, Any]) -> str:
    """The entry of a JSON config by which code of the model's own would be loaded; else empty."""
    for key in ("auto_map", "custom_pipeline", "trust_remote_code"):
        if config.get(key):
            return f"{key}: {config[key]!r}"
    if isinstance(config.get("_class_name"), list):
        return f"_class_name: {config['_class_name']!r}"
    return ""


def is_beside(name: object) -> bool:
    """Whether a shard's name in an index is the name of a file beside it, without a path."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a symbolic link at `path`, or in the way to it, leads out of `folder`."""
    return not path.resolve().is_relative_to(folder.resolve())
