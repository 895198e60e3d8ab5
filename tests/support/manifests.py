"""A manifest as `export` writes it, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdxl_bento.integrity import combined_digest, describe
from sdxl_bento.manifest import (
    BackendInfo,
    ComponentInfo,
    FileInfo,
    LoraInfo,
    Manifest,
    ParityFigure,
    PipelineInfo,
    Size,
    SizeLimits,
    SourceInfo,
    Versions,
)

HASH = "0" * 64


def with_digests(described: Manifest, folder: Path) -> Manifest:
    """The manifest with the digests of the files in `folder`, wherever it has digests."""
    files = describe(folder)

    def pipeline(info: PipelineInfo) -> PipelineInfo:
        components = {
            name: component.model_copy(update={"sha256": _combined(files, f"{info.path}/{name}/")})
            for name, component in info.components.items()
        }
        return info.model_copy(update={"components": components})

    refiner = described.refiner
    return described.model_copy(
        update={
            "files": files,
            "base": pipeline(described.base),
            "refiner": pipeline(refiner) if refiner is not None else None,
            "loras": tuple(
                lora.model_copy(update={"sha256": files[lora.path].sha256})
                for lora in described.loras
            ),
        }
    )


def _combined(files: Mapping[str, FileInfo], inside: str) -> str:
    return combined_digest(
        {
            path.removeprefix(inside): info.sha256
            for path, info in files.items()
            if path.startswith(inside)
        }
    )


def manifest(**changes: Any) -> Manifest:
    component = ComponentInfo(
        library="diffusers", class_name="UNet2DConditionModel", bytes=7, sha256=HASH
    )
    base = PipelineInfo(
        path="base",
        components={"unet": component},
        prediction_type="epsilon",
        width=128,
        height=128,
        latent_channels=4,
        vae_scale_factor=8,
        requires_aesthetics_score=False,
        force_zeros_for_empty_prompt=True,
    )
    parity = ParityFigure(part="base/unet", against="source", max_abs_error=1e-4, psnr_db=61.2)
    fields: dict[str, Any] = {
        "name": "tiny",
        "source": SourceInfo(kind="hub", location="a/b", revision="main", sha256=HASH),
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "versions": Versions(
            sdxl_bento="0", python="3", torch="2", diffusers="0", transformers="5", bentoml="1"
        ),
        "dtype": "fp16",
        "base": base,
        "refiner": base.model_copy(update={"path": "refiner"}),
        "loras": (
            LoraInfo(name="striped", path="loras/striped.safetensors", bytes=1, sha256=HASH),
        ),
        "backends": (
            BackendInfo(
                backend="onnx",
                device="cpu",
                versions={"onnxruntime": "1"},
                sizes=(Size(width=128, height=64),),
                rows=(1, 2),
                artifacts={"unet": "onnx/unet.onnx"},
                parity=(parity,),
            ),
        ),
        "size_limits": SizeLimits(multiple=32, min=32, max=256),
        "bytes": 12,
        "export_seconds": 1.5,
    }
    return Manifest(**{**fields, **changes})
