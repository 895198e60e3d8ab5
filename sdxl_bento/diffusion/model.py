"""A model from the store, on its device: tokenizers, encoders, UNets, VAE and what they expect."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdxl_bento.config import ComputeDtype, DeviceMode
from sdxl_bento.diffusion.folder import check_pipeline
from sdxl_bento.diffusion.tokens import TokenCounter
from sdxl_bento.diffusion.transfer import constant
from sdxl_bento.dtypes import torch_dtype
from sdxl_bento.engine.request import Stage
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import Manifest, PipelineInfo, WeightDtype

logger = logging.getLogger(f"bentoml.{__name__}")

_OFFLOAD = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


@dataclass
class Pipeline:
    """The parts of one diffusers pipeline. The refiner has one encoder, the base model two."""

    unet: Any
    vae: Any
    tokenizers: list[Any]
    text_encoders: list[Any]
    scheduler_config: Mapping[str, object]
    info: PipelineInfo
    hooks: Any = field(default=None, repr=False)  # diffusers' pipeline, if it moves the parts
    counters: list[TokenCounter] = field(default_factory=list)  # one for each tokenizer


@dataclass(frozen=True)
class Placement:
    """Where a model computes, and in what precision."""

    device: torch.device
    dtype: torch.dtype
    mode: DeviceMode

    @classmethod
    def choose(cls, mode: DeviceMode, dtype: ComputeDtype, index: int = 0) -> Placement:
        """Resolve `auto` on this machine.

        Raises:
            ConfigurationError: the mode needs a CUDA device and there is none.
        """
        cuda = torch.cuda.is_available()
        if mode == "auto":
            mode = "cuda" if cuda else "cpu"
        if mode != "cpu" and not cuda:
            raise ConfigurationError(
                f"SDXL_DEVICE is {mode}, which needs a CUDA device, and torch finds none; "
                "set SDXL_DEVICE=cpu, or install a CUDA build of torch"
            )
        if mode == "cpu":
            device = torch.device("cpu")
        else:
            device = torch.device("cuda", index % torch.cuda.device_count())
        default: WeightDtype = "fp32" if mode == "cpu" else "fp16"
        return cls(device, torch_dtype(default if dtype == "auto" else dtype), mode)


class Model:
    """One exported model, loaded. `name` is what requests call it."""

    def __init__(
        self,
        name: str,
        tag: str,
        folder: Path,
        manifest: Manifest,
        placement: Placement,
        base: Pipeline,
        refiner: Pipeline | None = None,
    ) -> None:
        self.name = name
        self.tag = tag
        self.folder = folder
        self.manifest = manifest
        self.placement = placement
        self.base = base
        self.refiner = refiner

    @classmethod
    def load(
        cls,
        name: str,
        tag: str,
        folder: Path,
        placement: Placement,
        compiled: Collection[str] = (),
    ) -> Model:
        """Read the model that `export` wrote to `folder`, onto its device.

        Of UNets among the `compiled` parts ("base/unet") only the layers' shapes are kept.

        Raises:
            ConfigurationError: the folder contains what no export writes, or lacks what it does.
        """
        manifest = Manifest.load(folder)
        base = _load_pipeline(folder, manifest.base, placement, "base/unet" in compiled)
        refiner = None
        if manifest.refiner is not None:
            refiner = _load_pipeline(
                folder, manifest.refiner, placement, "refiner/unet" in compiled
            )
        return cls(name, tag, folder, manifest, placement, base, refiner)

    def pipeline(self, stage: Stage) -> Pipeline:
        """The refiner's parts for REFINE, else the base model's."""
        if stage is not Stage.REFINE:
            return self.base
        if self.refiner is None:
            raise ConfigurationError(f"the model {self.name} has no refiner")
        return self.refiner

    def unscale(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's latents, from those that the UNet works on."""
        config = self.pipeline(stage).vae.config
        latents = latents / float(config.scaling_factor)
        mean, std = _statistics(config, latents)
        return latents * std + mean

    def rescale(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `unscale`."""
        config = self.pipeline(stage).vae.config
        mean, std = _statistics(config, latents)
        return (latents - mean) / std * float(config.scaling_factor)

    def slice(self, *, attention: bool, vae: bool) -> None:
        """Let parts compute in slices, which takes less memory and more time.

        Args:
            attention: of UNets; of those that run eagerly, a compiled one has its own.
            vae: decode the pictures of a batch one by one.
        """
        for pipeline in filter(None, (self.base, self.refiner)):
            if attention and pipeline.unet.device.type != "meta":
                pipeline.unet.set_attention_slice("max")  # "auto" fails with one head
            if vae:
                pipeline.vae.enable_slicing()

    def unload(self) -> None:
        """Drop the weights."""
        del self.base
        self.refiner = None
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()


def _statistics(
    config: Any, like: torch.Tensor
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Mean and spread of the VAE's latents, where its config gives them; else 0 and 1."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return 0.0, 1.0
    first, second = (constant(tuple(values), like.device) for values in (mean, std))
    return first.view(1, -1, 1, 1), second.view(1, -1, 1, 1)


def _load_pipeline(
    folder: Path, info: PipelineInfo, placement: Placement, no_unet: bool = False
) -> Pipeline:
    import diffusers
    import transformers

    silence: Callable[[], None] = transformers.logging.disable_progress_bar
    silence()  # a server's log is no terminal
    root = folder / info.path
    check_pipeline(folder, info, unread=frozenset({"unet"} if no_unet else ()))
    libraries = {"diffusers": diffusers, "transformers": transformers}
    parts: dict[str, Any] = {}
    for name, component in info.components.items():
        cls = getattr(libraries[component.library], component.class_name)
        if name == "scheduler":
            parts[name] = json.loads((root / name / "scheduler_config.json").read_text())
        elif name.startswith("tokenizer"):
            parts[name] = cls.from_pretrained(root / name, local_files_only=True)
        elif name == "unet" and no_unet:
            with torch.device("meta"):
                skeleton = cls.from_config(cls.load_config(root / name))
            parts[name] = nn.Module.to(skeleton, placement.dtype)  # diffusers' own would warn
        else:
            dtype = _vae_dtype(root, placement) if name == "vae" else placement.dtype
            key = "torch_dtype" if component.library == "diffusers" else "dtype"
            parts[name] = cls.from_pretrained(
                root / name, use_safetensors=True, local_files_only=True, **{key: dtype}
            ).eval()
            parts[name].requires_grad_(False)
    if parts["unet"].config.time_cond_proj_dim is not None:
        raise ConfigurationError(
            f"{root}: the UNet takes a guidance embedding (time_cond_proj_dim), which is not "
            "supported; use the LCM LoRA on a base model instead"
        )
    pipeline = Pipeline(
        unet=parts["unet"],
        vae=parts["vae"],
        tokenizers=[parts[n] for n in ("tokenizer", "tokenizer_2") if n in parts],
        text_encoders=[parts[n] for n in ("text_encoder", "text_encoder_2") if n in parts],
        scheduler_config=parts["scheduler"],
        info=info,
    )
    pipeline.counters = [TokenCounter(tokenizer) for tokenizer in pipeline.tokenizers]
    _place(pipeline, placement)
    return pipeline


def _vae_dtype(root: Path, placement: Placement) -> torch.dtype:
    """SDXL's VAE overflows in fp16 unless its weights were mended (`force_upcast` says so)."""
    config = json.loads((root / "vae" / "config.json").read_text())
    if placement.dtype is torch.float16 and config.get("force_upcast", True):
        return torch.float32
    return placement.dtype


def _place(pipeline: Pipeline, placement: Placement) -> None:
    """Move the parts to the device, or hand them to accelerate's hooks, which move them."""
    if placement.mode not in _OFFLOAD:
        parts = [pipeline.vae, *pipeline.text_encoders]
        if pipeline.unet.device.type != "meta":
            parts.append(pipeline.unet)
        for part in parts:
            part.to(placement.device)
        return
    from diffusers import StableDiffusionXLImg2ImgPipeline

    encoders = [None] * (2 - len(pipeline.text_encoders)) + pipeline.text_encoders
    tokenizers = [None] * (2 - len(pipeline.tokenizers)) + pipeline.tokenizers
    make: Callable[..., Any] = StableDiffusionXLImg2ImgPipeline
    hooks = make(
        vae=pipeline.vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=pipeline.unet,
        scheduler=None,
        add_watermarker=False,
    )
    getattr(hooks, placement.mode)(device=placement.device)
    pipeline.hooks = hooks
    logger.info("%s on %s", placement.mode, placement.device)
