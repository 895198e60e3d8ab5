"""`python -m export verify TAG`: is a stored model's every backend still the model, here?"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from export.check.parity import verify_parts
from export.check.pictures import verify_pictures
from export.compile.backends import figures, pipelines_of
from export.errors import ExportError
from export.progress import Progress
from sdxl_bento.backends.choose import misfit
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import find


def verify_model(tag: str, pictures: int, progress: Progress) -> list[BackendInfo]:
    """Measure every compiled backend of a stored model that fits this machine.

    Returns the backends with the figures of this machine. Those that do not fit are named.

    Raises:
        ConfigurationError: there is no such model.
        ExportError: the model has no compiled backend that fits.
        VerificationError: a backend is no longer the model.
    """
    exact, folder = find(tag)
    manifest = Manifest.load(folder)
    placement = Placement.choose("auto", "auto")
    measured = []
    for info in manifest.backends:
        if info.backend == "eager":
            continue
        reason = misfit(info, placement, "auto")
        if reason:
            progress.say(f"{info.label} does not fit this machine: {reason}")
            continue
        measured.append(_measure(info, manifest, folder, pictures, placement, progress))
        progress.console.print(_table(exact, measured[-1]))
    if not measured:
        have = ", ".join(info.label for info in manifest.backends)
        raise ExportError(f"{exact} has no compiled backend that fits this machine, only: {have}")
    return measured


def _measure(
    info: BackendInfo,
    manifest: Manifest,
    folder: Path,
    pictures: int,
    placement: Placement,
    progress: Progress,
) -> BackendInfo:
    with progress.stage(f"Verify the parts of {info.label}"):
        parity = verify_parts(info, folder, pipelines_of(manifest), placement.device)
    with progress.stage(f"Verify pictures of {info.label}"):
        verdict = verify_pictures(info, manifest, folder, pictures)
    return info.model_copy(
        update={"parity": parity, "images": verdict.images, "accuracy": verdict.accuracy}
    )


def _table(tag: str, info: BackendInfo) -> Table:
    table = Table(title=f"{tag}, {info.label}", title_justify="left", show_header=False)
    for name, figure in figures(info).items():
        table.add_row(name, figure)
    return table
