"""Find a source: what its name leads to, as a pipeline folder at hand.

=================================  ============================================================
`embedded`                         the model that ships with this package
a path, `file:///path`             a folder in diffusers' layout, or one `.safetensors` file
`organisation/model`, `hf://…`     a repository on the Hugging Face hub, or one file in it
`https://host/x.safetensors`       one file
`s3://bucket/…`, `gs://bucket/…`   a folder of objects, or one file
`pvc://claim/path`                 a claim that is mounted at `/mnt/pvc`, as KServe mounts it
=================================  ============================================================

What is fetched is checked in a cache; one file is unpacked in a scratch folder. Nothing of a source
reaches the model store before all of it is here and sound.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from export.embedded import WEIGHTS
from export.errors import ExportError, SourceError, UnsafeSourceError
from export.model import variants, weights
from export.model.inspection import Folder
from export.model.layout import Role
from export.model.writer import check_space
from export.source import hub, selection, single_file, unpack, vocabulary
from export.source.downloads import Workspace
from export.source.objects import SCHEMES, Objects
from export.source.single_file import Checkpoint
from export.source.web import Web, public
from sdxl_bento.config import ExportSettings, load_export_settings
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import Variant, WeightDtype

EMBEDDED = "embedded"
Kind = Literal["embedded", "folder", "file", "hub", "url", "object", "mounted"]
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".zst")


@dataclass(frozen=True)
class Source:
    """A pipeline folder at hand. `location` and `revision` are what the manifest records.

    `name` is what the model is called if the user does not say.
    """

    kind: Kind
    location: str
    folder: Folder
    revision: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source. `config` and `variant` are for a checkpoint in one file."""

    role: Role = "base"
    revision: str | None = None
    dtype: WeightDtype | None = None
    config: str | None = None
    variant: Variant | None = None


@dataclass(frozen=True)
class _Found:
    """What a name has led to: a folder or a checkpoint file on this machine."""

    kind: Kind
    location: str
    path: Path
    revision: str | None = None
    name: str = ""
    guard: Path | None = None


def settings() -> ExportSettings:
    """The environment of an export. Raises `ExportError` if a variable is wrong."""
    try:
        return load_export_settings()
    except ConfigurationError as error:
        raise ExportError(str(error)) from None


def named(text: str) -> str:
    """`text`, or what the environment names: STORAGE_URI, MODEL_ID, a folder at `/mnt/models`."""
    found = text or settings().source
    if not found:
        raise SourceError(
            "SOURCE", "nothing named", f"a path, hub id, URL or '{EMBEDDED}'; or STORAGE_URI or "
            f"MODEL_ID in the environment, or a folder mounted at {settings().model_mount}",
        )  # fmt: skip
    return found


def embedded() -> tuple[Source, Source, list[Path]]:
    """The model that ships with the repository: base, refiner, LoRA files."""
    base = Source("embedded", EMBEDDED, Folder(WEIGHTS / "base"), name="sdxl-embedded")
    refiner = Source("embedded", EMBEDDED, Folder(WEIGHTS / "refiner"), name="sdxl-embedded")
    return base, refiner, sorted((WEIGHTS / "loras").glob("*.safetensors"))


def shown(text: str) -> str:
    """`text` as it may be printed: without what a URL holds beside host and path."""
    return public(text) if "://" in text else text


def resolve(text: str, workspace: Workspace, wanted: Wanted | None = None) -> Source:
    """What `text` names. An existing path wins over a hub id of the same spelling.

    Raises `SourceError` if it names nothing or cannot be read, `UnsafeSourceError` and
    `NotSDXLError` for what is refused.
    """
    wanted = wanted or Wanted()
    found = _find(text, workspace, wanted)
    name = found.name or PurePosixPath(found.location.rstrip("/")).name
    path = found.path
    if path.is_dir() and not (path / selection.INDEX).is_file():
        singles = selection.single_files(item.name for item in path.iterdir())
        if len(singles) == 1:
            path = Folder(path, found.guard).file(singles[0])
    if path.is_dir():
        folder = _folder(path, found.guard)
    else:
        _refuse_file_kind(path.name, found.location)
        folder = _unpack(path, workspace, wanted)
    return Source(
        found.kind, found.location, folder, found.revision, name.removesuffix(".safetensors")
    )


def _find(text: str, workspace: Workspace, wanted: Wanted) -> _Found:
    scheme, separator, rest = text.partition("://")
    token = workspace.settings.hf_token
    if not separator:
        return _local(text, workspace, wanted)
    if scheme == "file":
        return _local(unquote(urlsplit(text).path), workspace, wanted, only_path=True)
    if scheme == "hf":
        return _hub(hub.Address.parse(rest, wanted.revision), wanted, token)
    if scheme == "pvc":
        return _claim(text, rest, workspace.settings)
    if scheme in SCHEMES:
        return _objects(text, workspace, wanted)
    if scheme in ("https", "http"):
        return _web(text, workspace)
    raise SourceError(
        shown(text), f"{scheme}://", "a path, or hf://, https://, s3://, gs://, pvc:// or file://"
    )


def _local(
    text: str, workspace: Workspace, wanted: Wanted, *, only_path: bool = False
) -> _Found:  # fmt: skip
    path = Path(text).expanduser()
    if path.is_dir() and path.resolve() == workspace.settings.model_mount.resolve():
        return _Found("mounted", str(workspace.settings.model_mount), path)
    if path.is_dir():
        return _Found("folder", path.resolve().name, path, wanted.revision)
    if path.is_file():
        return _Found("file", path.name, path)
    try:
        address = None if only_path else hub.Address.parse(text, wanted.revision)
    except UnsafeSourceError:
        raise
    except SourceError:
        address = None
    if address is None:
        raise SourceError(
            text, "neither a folder, a file nor a hub id",
            f"a path, 'organisation/model', a URL, or '{EMBEDDED}'",
        )  # fmt: skip
    return _hub(address, wanted, workspace.settings.hf_token)


def _hub(address: hub.Address, wanted: Wanted, token: str | None) -> _Found:
    fetched = hub.fetch(address, wanted.dtype, token)
    location = address.repository + (f"/{address.file}" if address.file else "")
    return _Found("hub", location, fetched.path, fetched.commit)


def _claim(text: str, rest: str, settings: ExportSettings) -> _Found:
    """KServe mounts the claim itself at `/mnt/pvc`, or the path in it at `/mnt/models`."""
    claim, _, below = rest.strip("/").partition("/")
    selection.refuse_unsafe([below] if below else [], text)
    path = settings.pvc_mount / below
    if path.exists():
        return _Found("mounted", text, path)
    if not settings.pvc_mount.exists() and settings.model_mount.is_dir():
        return _Found("mounted", text, settings.model_mount)
    raise SourceError(
        text, f"no {path}", f"the claim {claim!r} mounted at {settings.pvc_mount}"
        + (f", with {below} in it" if below else ""),
    )  # fmt: skip


def _web(text: str, workspace: Workspace) -> _Found:
    _refuse_file_kind(urlsplit(text).path, public(text), unknown_ok=True)
    with closing(Web(text)) as web:
        revision = web.stat("").version
        name = web.file_name
        _refuse_file_kind(name, web.name, unknown_ok=True)
        file = "model.safetensors"
        folder = workspace.download(web, [file])
        return _Found("url", web.name, folder / file, revision, name)


def _objects(text: str, workspace: Workspace, wanted: Wanted) -> _Found:
    _refuse_file_kind(text, text, unknown_ok=True)
    objects = Objects(text, workspace.settings)
    if objects.is_file():
        _refuse_file_kind(objects.name, objects.name)
        objects.check_start()
        folder = workspace.download(objects.parent(), [PurePosixPath(objects.name).name])
        path = folder / PurePosixPath(objects.name).name
        return _Found("object", objects.name, path, guard=folder)
    names = objects.names()
    selection.refuse_unsafe(names, objects.name)
    chosen = selection.single_files(names)
    if selection.INDEX in names or len(chosen) != 1:
        chosen = selection.wanted(names, wanted.dtype, objects.name)
    folder = workspace.download(objects, chosen)
    view = workspace.scratch / f"view-{wanted.role}"  # the cache may hold older files beside these
    for name in chosen:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to((folder / name).resolve())
    return _Found("object", objects.name, view, guard=folder)


def _folder(path: Path, guard: Path | None) -> Folder:
    """A folder; in the hub's cache, where files are links into `blobs`, those may be followed."""
    root = path.resolve()
    if guard is None and root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir():
        guard = root.parents[1]
    return Folder(root, guard)


def _refuse_file_kind(name: str, where: str, *, unknown_ok: bool = False) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in weights.PICKLES:
        raise UnsafeSourceError(
            where, f"a pickled checkpoint ({suffix}), which can run code when loaded", "safetensors"
        )
    if suffix in _ARCHIVES:
        raise SourceError(where, f"an archive ({suffix})", "what is in it, unpacked")
    if suffix != ".safetensors" and not unknown_ok:
        raise SourceError(
            where, f"a {suffix or 'nameless'} file", "a .safetensors file, or a folder"
        )


def _unpack(path: Path, workspace: Workspace, wanted: Wanted) -> Folder:
    """The pipeline in a checkpoint file, as a folder in diffusers' layout."""
    checkpoint = Checkpoint.read(path)
    single_file.check_role(checkpoint, wanted.role)
    config = _config(wanted.config, workspace) if wanted.config else None
    template = single_file.find_template(checkpoint, wanted.role, config)
    target = workspace.scratch / f"unpacked-{wanted.role}"
    check_space(workspace.scratch, [path])
    unpack.unpack(checkpoint, wanted.role, template, target)
    vocabulary.complete(target, workspace.settings.hf_token)
    _adapt_scheduler(target, checkpoint, wanted.variant)
    return Folder(target)


def _config(text: str, workspace: Workspace) -> Folder:
    path = Path(text).expanduser()
    if not path.is_dir():
        address = hub.Address.parse(text.removeprefix("hf://"))
        path = hub.fetch_configs(address, workspace.settings.hf_token)
    return _folder(path, None)


def _adapt_scheduler(folder: Path, checkpoint: Checkpoint, variant: Variant | None) -> None:
    """Write into the scheduler's config what the checkpoint or the user says of it."""
    path = folder / "scheduler" / "scheduler_config.json"
    changes = dict(variants.SCHEDULERS[variant]) if variant else {}
    if checkpoint.predicts_velocity:
        changes["prediction_type"] = "v_prediction"
    if checkpoint.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changes:
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(config, indent=2) + "\n")
        index = json.loads((folder / selection.INDEX).read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        (folder / selection.INDEX).write_text(json.dumps(index, indent=2) + "\n")
