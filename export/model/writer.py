"""Write a checked source into a model folder: copy or convert its weights, and describe them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from export.errors import ExportError
from export.model import weights
from export.model.inspection import Component, Json, Pipeline
from export.model.layout import KINDS, WRITTEN_CLASS
from sdxl_bento.dtypes import DTYPES
from sdxl_bento.manifest import ComponentInfo, PipelineInfo, WeightDtype


@dataclass(frozen=True)
class Written:
    """A written pipeline. `converted` holds the components whose weights changed their dtype."""

    info: PipelineInfo
    converted: frozenset[str]


def check_space(folder: Path, files: Iterable[Path], growth: float = 1.0) -> None:
    """Raise `ExportError` if the disk of `folder` cannot hold `files`."""
    needed = int(sum(path.stat().st_size for path in files) * growth)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for the model"
        )


def write_pipeline(pipeline: Pipeline, folder: Path, dtype: WeightDtype | None) -> Written:
    """Write `pipeline` into `folder/<role>/`, its weights in `dtype` (None keeps theirs)."""
    target = folder / pipeline.role
    target.mkdir()
    index: Json = {
        "_class_name": WRITTEN_CLASS[pipeline.role],
        "_diffusers_version": version("diffusers"),
        **pipeline.flags,
    }
    infos: dict[str, ComponentInfo] = {}
    converted: set[str] = set()
    for name, component in pipeline.components.items():
        (target / name).mkdir()
        if _write_component(component, target / name, dtype):
            converted.add(name)
        infos[name] = _describe(component, target / name)
        index[name] = [component.library, component.class_name]
    absent = {"text_encoder", "tokenizer", "image_encoder", "feature_extractor"} - set(infos)
    index |= {name: [None, None] for name in sorted(absent)}
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    geometry = pipeline.geometry
    info = PipelineInfo(
        path=pipeline.role,
        components=infos,
        prediction_type=geometry.prediction_type,
        width=geometry.width,
        height=geometry.height,
        latent_channels=geometry.latent_channels,
        vae_scale_factor=geometry.vae_scale_factor,
        requires_aesthetics_score=pipeline.flags.get("requires_aesthetics_score", False),
        force_zeros_for_empty_prompt=pipeline.flags["force_zeros_for_empty_prompt"],
    )
    return Written(info, frozenset(converted))


def _write_component(component: Component, target: Path, dtype: WeightDtype | None) -> bool:
    """Returns whether weights were converted."""
    changes = dtype is not None and component.dtype not in (None, dtype)
    for name, source in component.files.items():
        if changes and dtype and name.endswith(".safetensors"):
            weights.convert(source, target / name, dtype)
        else:
            weights.copy(source, target / name)
    if changes:
        _correct_json(component, target, dtype)
    if component.rewritten:
        config = json.dumps(component.config, indent=2) + "\n"
        (target / KINDS[component.name].config).write_text(config)
    return changes


def _correct_json(component: Component, target: Path, dtype: WeightDtype | None) -> None:
    """After a conversion, correct the dtype in a text encoder's config and the size in an index."""
    if component.library == "transformers" and dtype:
        config = {key: value for key, value in component.config.items() if key != "torch_dtype"}
        config["dtype"] = DTYPES[dtype].torch
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if component.index is not None:
        size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
        index = {**component.index, "metadata": {"total_size": size}}
        (path,) = target.glob("*.safetensors.index.json")
        path.write_text(json.dumps(index, indent=2) + "\n")


def _describe(component: Component, folder: Path) -> ComponentInfo:
    files = sorted(folder.iterdir())
    return ComponentInfo(
        library=component.library,
        class_name=component.class_name,
        bytes=sum(path.stat().st_size for path in files),
        sha256=weights.combined_digest({path.name: weights.digest(path) for path in files}),
    )
