"""`python -m export verify TAG`: verify the compiled backends of a stored model on this machine."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from export.check.parity import verify_parts
from export.check.pictures import verify_pictures
from export.errors import ExportError
from export.progress import Progress
from sdxl_bento.backends.choose import misfit
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import find


def verify_model(tag: str, pictures: int, progress: Progress) -> list[BackendInfo]:
    """Measure every compiled backend of a stored model that fits this machine.

    Args:
        tag: of the model.
        pictures: how many pictures each backend draws; 0 for none.
        progress: where stages, and backends that do not fit, are reported.

    Returns:
        The backends that fit, with the figures of this machine.

    Raises:
        ConfigurationError: there is no such model.
        ExportError: the model has no compiled backend that fits.
        VerificationError: a backend does not behave as the model does.
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
        parity = verify_parts(info, folder, manifest.pipelines, placement.device)
    with progress.stage(f"Verify pictures of {info.label}"):
        verdict = verify_pictures(info, manifest, folder, pictures)
    return info.model_copy(
        update={"parity": parity, "images": verdict.images, "accuracy": verdict.accuracy}
    )


def _table(tag: str, info: BackendInfo) -> Table:
    table = Table(title=f"{tag}, {info.label}", title_justify="left", show_header=False)
    for name, figure in figure_texts(info).items():
        table.add_row(name, figure)
    return table


def figure_texts(info: BackendInfo) -> dict[str, str]:
    """The figures of likeness that a manifest holds of a backend, as texts by what they are of."""
    rows = {figure.part: _decibels(figure.psnr_db) for figure in info.parity}
    for image in info.images:
        rows[f"picture of {image.prompt!r}"] = f"{_decibels(image.psnr_db)}, SSIM {image.ssim:.3f}"
    rows |= {f"right {name}": f"{share:.0%}" for name, share in info.accuracy.items()}
    return rows


def _decibels(psnr: float | None) -> str:
    return "equal" if psnr is None else f"{psnr:.1f} dB"
