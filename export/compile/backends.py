"""Compile a written model for its targets, verify each, and say so in the manifest."""

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
from export.compile.targets import TargetRequest, has_graphs_for, same_build
from export.model.components import component_of, load_shapes
from export.model.graphs import draw_example
from export.model.layout import Role
from export.progress import Progress
from sdxl_bento.backends.choose import device_name, misfit, runtime
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.manifest import BackendInfo, Manifest, PipelineInfo

TIMED_FORWARDS = 5


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
        manifest: of the model in `folder`, eager alone.
        folder: of the model; compiled parts are written into it.
        requests: what to compile.
        earlier: folders of models with the same content, whose compiled parts are taken over
            where they are what is asked for, or for other machines.
        pictures: how many pictures each backend draws to be compared; 0 for none.
        progress: what the user sees.

    Raises:
        ExportError: a target cannot be compiled here.
        VerificationError: what was compiled is not the model.
    """
    found = list(earlier)
    backends: list[BackendInfo] = []
    ranges: Mapping[Role, Ranges] = {}
    for request in sorted(requests, key=lambda request: request.target.made_from is not None):
        info = _take_over(request.info(), manifest, found, folder)
        if info is None:
            ranges = ranges or _ranges(request, manifest, folder, progress)
            info = compile_target(
                request,
                folder,
                pipelines_of(manifest),
                manifest.backends[0].attention,
                progress,
                _graphs(request, manifest, folder, backends, found),
                ranges,
            )
            info = _verified(info, manifest, folder, pictures, progress, request.device)
        else:
            progress.say(f"{info.label} has been compiled before: taken over")
        backends.append(info)
    backends += _carry_over(found, folder, backends)
    backends.sort(key=lambda info: info.step_ms or 0.0)
    return manifest.model_copy(update={"backends": (*manifest.backends, *backends)})


def pipelines_of(manifest: Manifest) -> dict[Role, PipelineInfo]:
    """The pipelines of a model by their role."""
    pipelines: dict[Role, PipelineInfo] = {"base": manifest.base}
    if manifest.refiner is not None:
        pipelines["refiner"] = manifest.refiner
    return pipelines


def _verified(
    info: BackendInfo,
    manifest: Manifest,
    folder: Path,
    pictures: int,
    progress: Progress,
    device: torch.device,
) -> BackendInfo:
    with progress.stage(f"Verify the parts of {info.label}"):
        changes: dict[str, object] = {
            "parity": verify_parts(info, folder, pipelines_of(manifest), device),
            "step_ms": step_ms(info, manifest, folder, device),
        }
    if pictures:
        draft = manifest.model_copy(update={"backends": (*manifest.backends, info)})
        draft.save(folder)  # the service's own loading reads it from there
        with progress.stage(f"Verify pictures of {info.label}"):
            verdict = verify_pictures(info, draft, folder, pictures)
        changes |= {"images": verdict.images, "accuracy": verdict.accuracy}
    return info.model_copy(update=changes)


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
    """The same backend out of a model that was made of the same by the same, linked or copied."""
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
    have: Sequence[BackendInfo],
    earlier: Sequence[Path],
) -> Path | None:
    """The folder of ONNX graphs that `request` can be made from: this model's, or an earlier one's
    that was written by the same versions."""
    models = [(folder, tuple(have))]
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
    """What the layers' numbers range over; empty if `request` does not ask."""
    if request.quantization != "int8-static":
        return {}
    from export.compile.calibration import calibrate

    manifest.save(folder)  # the service's own loading reads it from there
    with progress.stage("Measure the ranges of the layers"):
        return calibrate(folder)


def _carry_over(
    earlier: Sequence[Path], folder: Path, have: Sequence[BackendInfo]
) -> list[BackendInfo]:
    """What the model was compiled for before, for other machines or for this one, and still fits.

    So a model gathers backends: exported on a laptop, then on a GPU, it serves on both.
    """
    labels = {info.label for info in have}
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


def figures(info: BackendInfo) -> Mapping[str, str]:
    """What the manifest holds of a backend's likeness, in words, for a table."""
    rows = {
        figure.part: "equal" if figure.psnr_db is None else f"{figure.psnr_db:.1f} dB"
        for figure in info.parity
    }
    for image in info.images:
        psnr = "equal" if image.psnr_db is None else f"{image.psnr_db:.1f} dB"
        rows[f"picture of {image.prompt!r}"] = f"{psnr}, SSIM {image.ssim:.3f}"
    rows |= {f"right {name}": f"{share:.0%}" for name, share in info.accuracy.items()}
    return rows
