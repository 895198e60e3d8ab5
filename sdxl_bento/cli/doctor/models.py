"""Checks of the models in BentoML's store, and of their compiled parts on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sdxl_bento.cli.doctor.findings import Finding, good, note, problem, warning
from sdxl_bento.cli.doctor.machine import available_memory, gpu_memory
from sdxl_bento.cli.store import find, latest, stored, versions
from sdxl_bento.cli.terminal import size_text
from sdxl_bento.config import Settings, bentoml_home
from sdxl_bento.errors import ConfigurationError, ModelNotFound
from sdxl_bento.integrity import damage
from sdxl_bento.manifest import BackendInfo, Manifest, PipelineInfo
from sdxl_bento.serving.memory import budget

EMBEDDED = "python -m export embedded"


def store(_: Settings) -> Iterator[Finding]:
    """The store: its models, versions that are broken, room on the disk."""
    home = bentoml_home()
    for folder in versions():
        if not (folder / "model.yaml").is_file():
            yield warning(
                "model store", f"{folder} is half a model: it has no model.yaml",
                f"rm -r {folder}",
            )  # fmt: skip
    names = sorted({folder.parent for folder in versions()})
    for name in names:
        version = latest(name)
        if version is not None and not (name / version).is_dir():
            yield warning(
                "model store", f"{name / 'latest'} names {version}, which is not there",
                f"export the model again, or name a version in SDXL_MODEL ({_listed(name)})",
            )  # fmt: skip
    ours = stored()
    if ours:
        yield good("model store", f"{home}: {', '.join(model.tag for model in ours)}")
    else:
        yield note("model store", f"{home} has no model of ours", EMBEDDED)
    if home.is_dir():
        free = shutil.disk_usage(home).free
        largest = max((m.manifest.bytes for m in ours if m.manifest is not None), default=0)
        if free < largest:
            text = f"{size_text(free)} free, and its largest model has {size_text(largest)}"
            yield warning("model store", text, "make room before you export another one")
        else:
            yield good("model store", f"{size_text(free)} free")


def served(settings: Settings) -> Iterator[Finding]:
    """The models of the settings: whether they exist, are complete, and fit into memory."""
    for tag in settings.model_tags:
        try:
            model = find(tag)
        except ModelNotFound as error:
            yield problem("model", str(error), "SDXL_MODEL names another one of the store")
            continue
        if model.manifest is None:
            yield problem(model.tag, model.problem, "export the model again, or name another one")
            continue
        missing = list(_missing(model.folder, model.manifest))
        if missing:
            yield problem(
                model.tag, f"the model is incomplete: {'; '.join(missing)}",
                f"export it again (python -m export … --name {model.name} --force)",
            )  # fmt: skip
            continue
        yield good(model.tag, _summary(model.manifest))
        yield from _damage(model.tag, model.folder, model.manifest)
        yield from _room(model.tag, model.manifest, settings)


def others(settings: Settings) -> Iterator[Finding]:
    """Broken models that the settings do not name."""
    asked = set()
    for tag in settings.model_tags:
        try:
            asked.add(find(tag).tag)
        except ModelNotFound:
            continue
    for model in stored():
        if model.manifest is None and model.tag not in asked:
            yield warning(
                model.tag, model.problem, f"export the model again, or rm -r {model.folder}"
            )


def backends(settings: Settings) -> Iterator[Finding]:
    """Which compiled parts of the served models fit this machine, and why others do not."""
    for tag in settings.model_tags:
        try:
            model = find(tag)
        except ModelNotFound:
            continue
        if model.manifest is not None:
            yield from _fits(model.tag, model.manifest, settings)


def _fits(tag: str, manifest: Manifest, settings: Settings) -> Iterator[Finding]:
    from sdxl_bento.backends.choose import misfit
    from sdxl_bento.diffusion.model import Placement

    try:
        placement = Placement.choose(settings.device, settings.dtype)
    except ConfigurationError as error:
        yield problem(tag, str(error))
        return
    compiled = [info for info in manifest.backends if info.backend != "eager"]
    wanted = settings.backend
    allowed = [info for info in compiled if wanted in ("auto", info.backend, info.label)]
    if wanted not in ("auto", "eager") and not allowed:
        have = ", ".join(["eager", *(info.label for info in compiled)])
        mend = "SDXL_BACKEND=auto, or export the model with --target"
        yield problem(tag, f"SDXL_BACKEND is {wanted!r}, and the model has: {have}", mend)
        return
    again = f"python -m export … --name {manifest.name} --target auto, on this machine"
    chosen: BackendInfo | None = None
    for info in allowed:
        reason = misfit(info, placement, settings.dtype)
        if reason:
            yield warning(tag, f"{info.label} does not fit: {reason}", again)
        else:
            chosen = chosen or info
            yield good(tag, f"{info.label} fits{', and is used' if chosen is info else ''}")
    if placement.mode == "cpu":
        held = size_text(budget(manifest, settings, chosen))
        yield note(tag, f"its server may hold {held} of memory between requests")
    if chosen is not None:
        return
    if allowed and not settings.allow_fallback:
        yield problem(tag, "no compiled part fits, and SDXL_ALLOW_FALLBACK is off", again)
    else:
        yield note(tag, "runs eagerly", "" if allowed or wanted == "eager" else again)


def _missing(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is missing of a model, judged by the names and sizes in its manifest."""
    pipelines = [("base", manifest.base), ("refiner", manifest.refiner)]
    for role, pipeline in pipelines:
        if pipeline is not None:
            yield from _components(folder, role, pipeline)
    paths = [lora.path for lora in manifest.loras]
    paths += [path for info in manifest.backends for path in info.artifacts.values()]
    for path in paths:
        if not (folder / path).exists():
            yield f"{path} is missing"


def _damage(tag: str, folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Compare all files with the digests of the manifest, those that nothing here loads too."""
    again = f"export it again (python -m export … --name {manifest.name} --force)"
    found = damage(folder, manifest)
    for text in found:
        if text.startswith("compiled/"):
            yield warning(tag, f"{text}; its backend is not used", again)
        else:
            yield problem(tag, text, again)
    if not manifest.files:
        yield note(tag, "it was exported before compiled parts had digests", again)
    elif not found:
        yield good(tag, f"its {len(manifest.files)} files are as they were exported")


def _components(folder: Path, role: str, pipeline: PipelineInfo) -> Iterator[str]:
    for name, component in pipeline.components.items():
        place = folder / pipeline.path / name
        if not place.is_dir():
            yield f"{role}/{name} is missing"
            continue
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        if size != component.bytes:
            yield f"{role}/{name} has {size} bytes, not {component.bytes}"


def _summary(manifest: Manifest) -> str:
    refiner = "with" if manifest.refiner is not None else "without"
    size = f"{manifest.base.width}x{manifest.base.height}"
    loras = f"{len(manifest.loras)} LoRA{'s' if len(manifest.loras) != 1 else ''}"
    return f"{size}, {manifest.dtype}, {refiner} refiner, {loras}, {size_text(manifest.bytes)}"


def _room(tag: str, manifest: Manifest, settings: Settings) -> Iterator[Finding]:
    """Warn if the weights alone are larger than the free memory; drawing needs more on top."""
    parts = [p for p in (manifest.base, manifest.refiner) if p is not None]
    weights = sum(component.bytes for p in parts for component in p.components.values())
    for where, free, mend in (
        ("memory", available_memory(), "end other processes, or take a machine with more"),
        (
            "the GPU's memory",
            gpu_memory() if settings.device in ("auto", "cuda") else None,
            "end what else runs there, or SDXL_DEVICE=enable_model_cpu_offload",
        ),
    ):
        if free is not None and free < weights:
            text = (
                f"its weights are {size_text(weights)}, and {size_text(free)} of {where} are free"
            )
            yield warning(tag, text, mend)


def _listed(name: Path) -> str:
    tags = [f"{name.name}:{path.name}" for path in sorted(name.iterdir()) if path.is_dir()]
    return ", ".join(tags) or "there is none"
