"""One export from its options to a tag: read, stage, verify, commit."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from export import store as bento
from export.check import eager
from export.compile.requests import PICTURES, TargetRequest, same_build
from export.errors import ExportError
from export.model import prediction, weights, writer
from export.model.inspection import Pipeline, read_pipeline, slug
from export.model.loras import check_loras, name_loras, write_loras
from export.model.preview import fit_latent_rgb
from export.progress import Progress
from export.source import resolution
from export.source.downloads import Workspace
from export.source.resolution import LocalSource
from export.source.transfer import show_transfer
from sdxl_bento import __version__
from sdxl_bento.diffusion.schedules import scheduler_note
from sdxl_bento.integrity import describe
from sdxl_bento.manifest import (
    BackendInfo,
    Manifest,
    ParityFigure,
    PipelineInfo,
    PredictionType,
    SizeLimits,
    SourceInfo,
    Variant,
    Versions,
    WeightDtype,
)

LEAST_SIDE = 64  # pixels; smaller pictures are refused by the API too


@dataclass(frozen=True)
class Options:
    """What to export, and how.

    Attributes:
        source: a name as in `export.source.resolution`; empty takes the environment's.
        refiner: the source of a refiner that goes with it.
        loras: files of adapters to add, or `NAME=FILE`.
        name: of the model in the store; None derives it from the source.
        dtype: of the written weights; None keeps the source's.
        revision: branch, tag or commit of a hub repository.
        config, variant: as in `resolution.SourceRequest`.
        prediction, zero_terminal_snr: of the base model, in place of what its source says.
        force: export even if the store has the same model.
        targets: what to compile beside the eager model.
        pictures: how many each target draws to be verified; 0 for none.
        attention: the eager model's attention backend; "auto" takes the fastest on a GPU.
    """

    source: str
    refiner: str | None = None
    loras: tuple[Path | str, ...] = ()
    name: str | None = None
    dtype: WeightDtype | None = None
    revision: str | None = None
    config: str | None = None
    variant: Variant | None = None
    prediction: PredictionType | None = None
    zero_terminal_snr: bool | None = None
    force: bool = False
    targets: tuple[TargetRequest, ...] = ()
    pictures: int = PICTURES
    attention: str = "auto"


@dataclass(frozen=True)
class Result:
    """The exported model. `created` is False if the store had the same one already."""

    tag: str
    created: bool


@dataclass(frozen=True)
class _Plan:
    """A checked source and the choices for its model.

    Attributes:
        sha256: covers the model's content.
        notes: what the user should know of it.
    """

    name: str
    source: LocalSource
    base: Pipeline
    refiner: Pipeline | None
    loras: dict[str, Path]
    sha256: str
    dtype: WeightDtype
    variant: Variant
    notes: tuple[str, ...] = ()

    @property
    def pipelines(self) -> list[Pipeline]:
        return [self.base] + ([self.refiner] if self.refiner else [])

    def files(self) -> dict[str, Path]:
        """Every source file to take, by its path in the model folder."""
        files = {f"loras/{name}.safetensors": path for name, path in self.loras.items()}
        for pipeline in self.pipelines:
            files |= {f"{pipeline.role}/{name}": path for name, path in pipeline.files().items()}
        return files


def run(options: Options, progress: Progress | None = None) -> Result:
    """Export a model into the BentoML store, unless the store has the same one.

    The store is left as it was if anything is raised.

    Raises:
        ExportError: the source is refused, or the model cannot be written or verified.
    """
    progress = progress or Progress()
    options = replace(options, source=resolution.source_or_default(options.source))
    transfer = partial(show_transfer, progress.console)
    with (
        bento.staging() as scratch,
        Workspace(scratch, resolution.settings(), transfer) as workspace,
    ):
        return _run(options, progress, workspace)


def _run(options: Options, progress: Progress, workspace: Workspace) -> Result:
    started = time.perf_counter()
    wanted = [request.info() for request in options.targets]
    plan = _plan(options, progress, workspace)
    for note in plan.notes:
        progress.say(f"Note: {note}")

    def has_targets(manifest: Manifest) -> bool:
        attention = manifest.backends[0].attention
        return options.attention in ("auto", attention) and all(
            any(same_build(info, each) for info in manifest.backends) for each in wanted
        )

    content = plan.name, plan.sha256, plan.dtype
    if not options.force and (tag := bento.find(*content, has_targets)):
        return Result(tag, created=False)
    plan = _with_checked_loras(plan, progress)
    with bento.staging() as scratch:
        folder = scratch / "model"
        folder.mkdir()
        manifest = _stage(plan, options, folder, progress, started)
        if options.targets:
            from export.backends import add_backends

            earlier = () if options.force else bento.same_content(*content)
            manifest = add_backends(
                manifest, folder, options.targets, earlier, options.pictures, progress
            )
            manifest = _measured(manifest, folder, started)
        with progress.stage("Compute digests of all files"):
            manifest = manifest.model_copy(update={"files": describe(folder)})
        with progress.stage("Move it into the model store"):
            manifest.save(folder)
            tag = bento.commit(folder, plan.name, {"family": manifest.family}, _metadata(manifest))
    return Result(tag, created=True)


def _plan(options: Options, progress: Progress, workspace: Workspace) -> _Plan:
    """Fetch and check everything that is needed. No part of the model is written yet."""
    with progress.stage(f"Read and check {resolution.printable(options.source)}"):
        loras = name_loras((*(_embedded_loras(options)), *options.loras))
        source, refiner = _sources(options, workspace)
        name = options.name or slug(source.name)
        bento.check_name(name)
        base = read_pipeline(
            source.folder, "base", options.dtype, options.prediction, options.zero_terminal_snr
        )
        second = read_pipeline(refiner.folder, "refiner", options.dtype) if refiner else None
        _check_pair(base, second)
        plan = _Plan(
            name=name,
            source=source,
            base=base,
            refiner=second,
            loras=loras,
            sha256="",
            notes=(*source.notes, *_notes(source, base, options)),
            dtype=options.dtype or base.dtype,
            variant=options.variant or base.variant,
        )
        digests = {path: weights.digest(file) for path, file in plan.files().items()}
        digests |= {f"{part.role}/#": _choices(part, options.dtype) for part in plan.pipelines}
        digests["variant/#"] = plan.variant
        return replace(plan, sha256=weights.combined_digest(digests))


def _with_checked_loras(plan: _Plan, progress: Progress) -> _Plan:
    """The plan with what is to be known of its adapters, which takes torch to find out."""
    if not plan.loras:
        return plan
    with progress.stage("Check the adapters"):
        notes = check_loras(plan.loras, plan.base)
    for note in notes:
        progress.say(f"Note: {note}")
    return replace(plan, notes=(*plan.notes, *notes))


def _notes(source: LocalSource, base: Pipeline, options: Options) -> list[str]:
    notes = [scheduler_note(base.components["scheduler"].config)]
    if options.prediction is None:
        notes.append(prediction.hint(source.location, base.geometry.prediction_type))
    return [note for note in notes if note]


def _choices(pipeline: Pipeline, dtype: WeightDtype | None) -> str:
    """What the result depends on beside the copied files, as a text to be hashed.

    These are the flags, which go into a new `model_index.json`, which components change their
    dtype, and configs that are written anew.
    """
    changed = [
        part.name
        for part in pipeline.components.values()
        if dtype is not None and part.dtype not in (None, dtype)
    ]
    rewritten = {
        part.name: sorted(part.config.items(), key=str)
        for part in pipeline.components.values()
        if part.rewritten
    }
    return f"{sorted(pipeline.flags.items())} {changed}" + (f" {rewritten}" if rewritten else "")


def _sources(options: Options, workspace: Workspace) -> tuple[LocalSource, LocalSource | None]:
    if options.source == resolution.EMBEDDED:
        base, refiner, _ = resolution.embedded()
        return base, refiner
    request = resolution.SourceRequest(
        "base",
        options.revision,
        options.dtype,
        options.config,
        options.variant,
        options.prediction,
    )
    base = resolution.resolve(options.source, workspace, request)
    refiner_source = None
    if options.refiner:
        request = resolution.SourceRequest("refiner", dtype=options.dtype)
        refiner_source = resolution.resolve(options.refiner, workspace, request)
    return base, refiner_source


def _embedded_loras(options: Options) -> list[Path]:
    return resolution.embedded()[2] if options.source == resolution.EMBEDDED else []


def _check_pair(base: Pipeline, refiner: Pipeline | None) -> None:
    """Refuse a pair with different latent spaces: the refiner continues with the base's latents."""
    if refiner is None:
        return
    ours, theirs = base.geometry, refiner.geometry
    for name in ("latent_channels", "vae_scale_factor"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ExportError(
                f"base and refiner differ in {name}: {getattr(ours, name)} and "
                f"{getattr(theirs, name)}; they must share one latent space"
            )


def _stage(
    plan: _Plan, options: Options, folder: Path, progress: Progress, started: float
) -> Manifest:
    """Write the model into `folder` and verify it."""
    dtype = options.dtype
    growth = 2.0 if plan.dtype == "fp32" and plan.base.dtype != "fp32" else 1.0
    writer.check_space(folder, plan.files().values(), growth)
    infos: dict[str, PipelineInfo] = {}
    figures: list[ParityFigure] = []
    for pipeline in plan.pipelines:
        with progress.stage(f"Write the {pipeline.role} model in {plan.dtype}"):
            written = writer.write_pipeline(pipeline, folder, dtype)
            infos[pipeline.role] = written.info
        with progress.stage(f"Verify the {pipeline.role} model"):
            figures += eager.verify_pipeline(
                pipeline, folder / pipeline.role, written.converted, folder.parent
            )
    latent_rgb = None
    if not plan.base.has_family_vae:
        latent_rgb = fit_latent_rgb(folder / "base" / "vae", infos["base"].width)
    from export.compile.attention import choose_attention

    attention = choose_attention(
        folder / "base" / "unet", infos["base"], options.attention, progress
    )
    loras = write_loras(plan.loras, folder)
    weights.share_equal(folder)
    return Manifest(
        name=plan.name,
        variant=plan.variant,
        source=SourceInfo(
            kind=plan.source.kind,
            location=plan.source.location,
            revision=plan.source.revision,
            sha256=plan.sha256,
        ),
        created=datetime.now(UTC),
        versions=_versions(),
        dtype=plan.dtype,
        base=infos["base"],
        refiner=infos.get("refiner"),
        loras=loras,
        notes=plan.notes,
        backends=(_eager(tuple(figures), attention),),
        size_limits=_limits(plan.base),
        latent_rgb=latent_rgb,
        bytes=bento.content_bytes(folder),
        export_seconds=round(time.perf_counter() - started, 2),
    )


def _measured(manifest: Manifest, folder: Path, started: float) -> Manifest:
    """The manifest with the model's present size and the time since `started`."""
    seconds = round(time.perf_counter() - started, 2)
    size = bento.content_bytes(folder)
    return manifest.model_copy(update={"bytes": size, "export_seconds": seconds})


def _versions() -> Versions:
    return Versions(
        sdxl_bento=__version__,
        python=platform.python_version(),
        torch=version("torch"),
        diffusers=version("diffusers"),
        transformers=version("transformers"),
        bentoml=version("bentoml"),
    )


def _eager(parity: tuple[ParityFigure, ...], attention: str | None) -> BackendInfo:
    """The backend that every model has: diffusers' own modules, for any device and size."""
    versions = {name: version(name) for name in ("torch", "diffusers")}
    return BackendInfo(
        backend="eager", device="any", versions=versions, attention=attention, parity=parity
    )


def _limits(base: Pipeline) -> SizeLimits:
    """From a quarter of the native side to twice it, in steps at which the UNet has whole cells."""
    step, side = base.geometry.multiple, base.geometry.width
    least = max(LEAST_SIDE, side // 4)
    return SizeLimits(multiple=step, min=-(-least // step) * step, max=2 * side // step * step)


def _metadata(manifest: Manifest) -> dict[str, object]:
    """What `bentoml models get` shows, a summary of the manifest. BentoML accepts no None here."""
    return {
        "family": manifest.family,
        "variant": manifest.variant,
        "dtype": manifest.dtype,
        "source": f"{manifest.source.kind}:{manifest.source.location}",
        "sha256": manifest.source.sha256,
        "refiner": manifest.refiner is not None,
        "loras": [lora.name for lora in manifest.loras],
        "backends": [backend.backend for backend in manifest.backends],
        "manifest_schema": manifest.schema_version,
    }
