"""The compiled backends of a model that is being exported: compile, verify, record.

A backend that an earlier export of the same content has compiled is not compiled again: its files
are linked into the new model.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from export.check.parity import verify_parts
from export.check.pictures import verify_pictures
from export.compile.compiler import compile_target
from export.compile.onnx_graph.static import Ranges
from export.compile.requests import TargetRequest, has_graphs_for, same_build
from export.model.components import load_shapes
from export.model.graphs import draw_example
from export.model.parts import component_of
from export.progress import Progress
from sdxl_bento.backends.choose import device_name, misfit, runtime
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.manifest import BackendInfo, Manifest, Probe, Role

TIMED_FORWARDS = 5
PROBES = "probes.safetensors"


def add_backends(
    manifest: Manifest,
    folder: Path,
    requests: Sequence[TargetRequest],
    earlier: Iterable[Path],
    pictures: int,
    progress: Progress,
) -> Manifest:
    """The manifest with a backend for each target, the fastest first; not saved yet.

    Args:
        manifest: of the model in `folder`, with the eager backend alone.
        folder: of the model; compiled parts are written into it.
        requests: what to compile.
        earlier: folders of models with the same content. Their compiled parts are reused where
            they are what is asked for, and kept where they are for other machines.
        pictures: how many pictures each backend draws to be compared; 0 for none.
        progress: where stages are reported.

    Raises:
        ExportError: a target cannot be compiled on this machine.
        VerificationError: compiled parts do not behave as the model does.
    """
    models = list(earlier)
    backends: list[BackendInfo] = []
    ranges: Mapping[Role, Ranges] = {}
    for request in sorted(requests, key=lambda request: request.target.made_from is not None):
        info = _take_over(request.info(), manifest, models, folder)
        if info is None:
            ranges = ranges or _ranges(request, manifest, folder, progress)
            info = compile_target(
                request,
                folder,
                manifest.pipelines,
                manifest.backends[0].attention,
                progress,
                _graphs(request, manifest, folder, backends, models),
                ranges,
            )
            info = _verified(info, manifest, folder, pictures, progress, request.device)
        else:
            progress.say(f"{info.label} has been compiled before: taken over")
        backends.append(info)
    backends += _carry_over(models, folder, backends)
    backends.sort(key=lambda info: info.step_ms or 0.0)
    return manifest.model_copy(update={"backends": (*manifest.backends, *backends)})


def _verified(
    info: BackendInfo,
    manifest: Manifest,
    folder: Path,
    pictures: int,
    progress: Progress,
    device: torch.device,
) -> BackendInfo:
    with progress.stage(f"Verify the parts of {info.label}"):
        kept: dict[str, tuple[Probe, torch.Tensor]] = {}
        changes: dict[str, object] = {
            "parity": verify_parts(info, folder, manifest.pipelines, device, kept),
            **_write_probes(info, folder, kept),
            "step_ms": step_ms(info, manifest, folder, device),
        }
    info = info.model_copy(update=changes)
    if not pictures:
        return info
    draft = manifest.model_copy(update={"backends": (*manifest.backends, info)})
    draft.save(folder)  # the service's own loading reads it from there
    with progress.stage(f"Verify pictures of {info.label}"):
        verdict = verify_pictures(info, draft, folder, pictures)
    return info.model_copy(update={"images": verdict.images, "accuracy": verdict.accuracy})


def _write_probes(
    info: BackendInfo, folder: Path, kept: Mapping[str, tuple[Probe, torch.Tensor]]
) -> dict[str, object]:
    """Write what the service compares its parts with; the fields of the manifest's entry."""
    from safetensors.torch import save

    path = f"compiled/{info.label}/{PROBES}"
    outputs = {part: output.contiguous() for part, (_, output) in kept.items()}
    size = (folder / path).write_bytes(save(outputs))
    return {
        "probes": {part: probe for part, (probe, _) in kept.items()},
        "probe_outputs": path,
        "bytes": info.bytes + size,
    }


def step_ms(info: BackendInfo, manifest: Manifest, folder: Path, device: torch.device) -> float:
    """Milliseconds of one forward of the base UNet, two rows at the native size; the median."""
    part, base = "base/unet", manifest.base
    weights = folder / base.path / component_of(part)
    cells = base.height // base.vae_scale_factor, base.width // base.vae_scale_factor
    drawn = draw_example("base", load_shapes(weights).config, 2, *cells)
    inputs = {name: tensor.to(device) for name, tensor in drawn.items()}
    options = PartOptions(info, device, weights)
    compiled = runtime(info.backend).load(folder / info.artifacts[part], options)
    seconds = []
    for _ in range(TIMED_FORWARDS + 1):  # the first warms up
        began = time.perf_counter()
        compiled(inputs).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    compiled.unload()
    return round(statistics.median(seconds[1:]) * 1e3, 3)


def _take_over(
    wanted: BackendInfo, manifest: Manifest, earlier: Sequence[Path], folder: Path
) -> BackendInfo | None:
    """The wanted backend from an earlier model that the same versions wrote, its files linked."""
    for model in earlier:
        other = Manifest.load(model)
        if other.versions != manifest.versions:
            continue
        for info in other.backends:
            source = model / "compiled" / info.label
            if info.backend != "eager" and same_build(info, wanted) and source.is_dir():
                _link_tree(source, folder / "compiled" / info.label)
                return info
    return None


def _graphs(
    request: TargetRequest,
    manifest: Manifest,
    folder: Path,
    compiled: Sequence[BackendInfo],
    earlier: Sequence[Path],
) -> Path | None:
    """The folder of ONNX graphs that `request` can be made from, if there is one.

    They are this model's, or those of an earlier one that the same versions wrote.
    """
    models = [(folder, tuple(compiled))]
    for model in earlier:
        other = Manifest.load(model)
        if other.versions == manifest.versions:
            models.append((model, other.backends))
    for model, backends in models:
        for info in backends:
            graphs = model / "compiled" / info.label
            if has_graphs_for(info, request) and graphs.is_dir():
                return graphs
    return None


def _ranges(
    request: TargetRequest, manifest: Manifest, folder: Path, progress: Progress
) -> Mapping[Role, Ranges]:
    """The ranges of the UNets' layers; empty if `request` does not need them."""
    if request.quantization != "int8-static":
        return {}
    from export.compile.calibration import calibrate

    manifest.save(folder)  # the service's own loading reads it from there
    with progress.stage("Measure the ranges of the layers"):
        return calibrate(folder)


def _carry_over(
    earlier: Sequence[Path], folder: Path, compiled: Sequence[BackendInfo]
) -> list[BackendInfo]:
    """Backends of earlier exports that are still usable, for this machine or for others.

    So a model gathers backends: one that was exported on a laptop, then on a GPU, serves on both.
    """
    labels = {info.label for info in compiled}
    placement = Placement.choose("auto", "auto")
    here = device_name(placement.device)
    carried = []
    for model in earlier:
        for info in Manifest.load(model).backends:
            source = model / "compiled" / info.label
            if info.backend == "eager" or info.label in labels or not source.is_dir():
                continue
            if info.device == here and misfit(info, placement, "auto"):
                continue
            _link_tree(source, folder / "compiled" / info.label)
            labels.add(info.label)
            carried.append(info)
    return carried


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
