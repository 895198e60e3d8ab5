"""Resolution of a source's name to a pipeline folder on this machine. These names are understood:

=================================  ============================================================
`embedded`                         the model that ships with this package
a path, `file:///path`             a folder in diffusers' layout, or one `.safetensors` file
`organisation/model`, `hf://…`     a repository on the Hugging Face hub, or one file in it
`https://host/x.safetensors`       one file
`s3://bucket/…`, `gs://bucket/…`   a folder of objects, or one file
`pvc://claim/path`                 a claim that is mounted at `/mnt/pvc`, as KServe mounts it
=================================  ============================================================

Downloads are kept in a cache and checked there; a single file is unpacked into a scratch folder.
Nothing of a source reaches the model store before all of it has been fetched and checked.
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
from export.model import prediction, variants, weights
from export.model.inspection import Folder
from export.model.prediction import Stated
from export.model.writer import check_space
from export.source import hub, selection, single_file, unpack, vocabulary
from export.source.downloads import Workspace
from export.source.objects import SCHEMES, Objects
from export.source.single_file import Checkpoint
from export.source.web import Web, public
from sdxl_bento.config import ExportSettings, load_export_settings
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import PredictionType, Role, Variant, WeightDtype

EMBEDDED = "embedded"
Kind = Literal["embedded", "folder", "file", "hub", "url", "object", "mounted"]
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".zst")


@dataclass(frozen=True)
class LocalSource:
    """A pipeline folder on this machine.

    `kind`, `location` and `revision` go into the manifest. `name` is the default name of the model.
    `notes` are what the user should know of it.
    """

    kind: Kind
    location: str
    folder: Folder
    revision: str | None = None
    name: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRequest:
    """Which files of a source are request.

    `dtype` selects a variant of the weights. `config` (a folder or hub id), `variant` and
    `prediction` complete a checkpoint in one file, which holds no configs.
    """

    role: Role = "base"
    revision: str | None = None
    dtype: WeightDtype | None = None
    config: str | None = None
    variant: Variant | None = None
    prediction: PredictionType | None = None


@dataclass(frozen=True)
class _Located:
    """A folder or a checkpoint file on this machine, before it has been read.

    No file outside of `guard` may be read through a link; None stands for the folder itself.
    """

    kind: Kind
    location: str
    path: Path
    revision: str | None = None
    name: str = ""
    guard: Path | None = None


def settings() -> ExportSettings:
    """The export's settings from the environment. Raises `ExportError` if a variable is wrong."""
    try:
        return load_export_settings()
    except ConfigurationError as error:
        raise ExportError(str(error)) from None


def source_or_default(text: str) -> str:
    """`text`, or the environment's source: STORAGE_URI, MODEL_ID, or a folder at `/mnt/models`."""
    source = text or settings().source
    if not source:
        raise SourceError(
            "SOURCE", "nothing named", f"a path, hub id, URL or '{EMBEDDED}'; or STORAGE_URI or "
            f"MODEL_ID in the environment, or a folder mounted at {settings().model_mount}",
        )  # fmt: skip
    return source


def embedded() -> tuple[LocalSource, LocalSource, list[Path]]:
    """The model that comes with this package: base, refiner, and LoRA files."""
    base = LocalSource("embedded", EMBEDDED, Folder(WEIGHTS / "base"), name="sdxl-embedded")
    refiner = LocalSource("embedded", EMBEDDED, Folder(WEIGHTS / "refiner"), name="sdxl-embedded")
    return base, refiner, sorted((WEIGHTS / "loras").glob("*.safetensors"))


def printable(text: str) -> str:
    """A source's name without the parts of a URL that may hold secrets: password and query."""
    return public(text) if "://" in text else text


def resolve(text: str, workspace: Workspace, request: SourceRequest | None = None) -> LocalSource:
    """The source named `text`, fetched if it is remote.

    An existing path takes precedence over a hub id of the same spelling.

    Raises:
        SourceError: there is no such source, or it cannot be read.
        UnsafeSourceError: it would run code, or leads out of its folder.
        NotSDXLError: it is another kind of model.
    """
    request = request or SourceRequest()
    located = _locate(text, workspace, request)
    name = located.name or PurePosixPath(located.location.rstrip("/")).name
    path = located.path
    if path.is_dir() and not (path / selection.INDEX).is_file():
        singles = selection.single_files(item.name for item in path.iterdir())
        if len(singles) == 1:
            path = Folder(path, located.guard).file(singles[0])
    notes: tuple[str, ...] = ()
    if path.is_dir():
        folder = _folder(path, located.guard)
    else:
        _refuse_file_kind(path.name, located.location)
        folder, note = _unpack(path, workspace, request)
        notes = (note,) if note else ()
    name = name.removesuffix(".safetensors")
    return LocalSource(located.kind, located.location, folder, located.revision, name, notes)


def _locate(text: str, workspace: Workspace, request: SourceRequest) -> _Located:
    scheme, separator, rest = text.partition("://")
    token = workspace.settings.hf_token
    if not separator:
        return _local(text, workspace, request)
    if scheme == "file":
        return _local(unquote(urlsplit(text).path), workspace, request, only_path=True)
    if scheme == "hf":
        return _hub(hub.Address.parse(rest, request.revision), request, token)
    if scheme == "pvc":
        return _claim(text, rest, workspace.settings)
    if scheme in SCHEMES:
        return _objects(text, workspace, request)
    if scheme in ("https", "http"):
        return _web(text, workspace)
    raise SourceError(
        printable(text),
        f"{scheme}://",
        "a path, or hf://, https://, s3://, gs://, pvc:// or file://",
    )


def _local(
    text: str, workspace: Workspace, request: SourceRequest, *, only_path: bool = False
) -> _Located:  # fmt: skip
    path = Path(text).expanduser()
    if path.is_dir() and path.resolve() == workspace.settings.model_mount.resolve():
        return _Located("mounted", str(workspace.settings.model_mount), path)
    if path.is_dir():
        return _Located("folder", path.resolve().name, path, request.revision)
    if path.is_file():
        return _Located("file", path.name, path)
    try:
        address = None if only_path else hub.Address.parse(text, request.revision)
    except UnsafeSourceError:
        raise
    except SourceError:
        address = None
    if address is None:
        raise SourceError(
            text, "neither a folder, a file nor a hub id",
            f"a path, 'organisation/model', a URL, or '{EMBEDDED}'",
        )  # fmt: skip
    return _hub(address, request, workspace.settings.hf_token)


def _hub(address: hub.Address, request: SourceRequest, token: str | None) -> _Located:
    fetched = hub.fetch(address, request.dtype, token)
    location = address.repository + (f"/{address.file}" if address.file else "")
    return _Located("hub", location, fetched.path, fetched.commit)


def _claim(text: str, rest: str, settings: ExportSettings) -> _Located:
    """A path in a claim. KServe mounts the claim at `/mnt/pvc`, or the path at `/mnt/models`."""
    claim, _, below = rest.strip("/").partition("/")
    selection.refuse_unsafe([below] if below else [], text)
    path = settings.pvc_mount / below
    if path.exists():
        return _Located("mounted", text, path)
    if not settings.pvc_mount.exists() and settings.model_mount.is_dir():
        return _Located("mounted", text, settings.model_mount)
    raise SourceError(
        text, f"no {path}", f"the claim {claim!r} mounted at {settings.pvc_mount}"
        + (f", with {below} in it" if below else ""),
    )  # fmt: skip


def _web(text: str, workspace: Workspace) -> _Located:
    _refuse_file_kind(urlsplit(text).path, public(text), unknown_ok=True)
    with closing(Web(text)) as web:
        revision = web.stat("").version
        name = web.file_name
        _refuse_file_kind(name, web.name, unknown_ok=True)
        file = "model.safetensors"
        folder = workspace.download(web, [file])
        return _Located("url", web.name, folder / file, revision, name)


def _objects(text: str, workspace: Workspace, request: SourceRequest) -> _Located:
    _refuse_file_kind(text, text, unknown_ok=True)
    objects = Objects(text, workspace.settings)
    if objects.is_file():
        _refuse_file_kind(objects.name, objects.name)
        objects.check_start()
        folder = workspace.download(objects.parent(), [PurePosixPath(objects.name).name])
        path = folder / PurePosixPath(objects.name).name
        return _Located("object", objects.name, path, guard=folder)
    names = objects.names()
    selection.refuse_unsafe(names, objects.name)
    chosen = selection.single_files(names)
    if selection.INDEX in names or len(chosen) != 1:
        chosen = selection.select(names, request.dtype, objects.name)
    folder = workspace.download(objects, chosen)
    view = workspace.scratch / f"view-{request.role}"  # without older files that the cache may hold
    for name in chosen:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to((folder / name).resolve())
    return _Located("object", objects.name, view, guard=folder)


def _folder(path: Path, guard: Path | None) -> Folder:
    """A folder to read. In the hub's cache, files are links into `blobs`, which may be followed."""
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


def _unpack(path: Path, workspace: Workspace, request: SourceRequest) -> tuple[Folder, str]:
    """The pipeline in a checkpoint file, as a folder in diffusers' layout; and a note or none."""
    checkpoint = Checkpoint.read(path)
    single_file.check_role(checkpoint, request.role)
    said = prediction.stated(path, checkpoint.shapes, checkpoint.metadata, request.prediction)
    config = _config(request.config, workspace) if request.config else None
    template = single_file.find_template(checkpoint, request.role, config)
    target = workspace.scratch / f"unpacked-{request.role}"
    check_space(workspace.scratch, [path])
    unpack.unpack(checkpoint, request.role, template, target)
    vocabulary.complete(target, workspace.settings.hf_token)
    _adapt_scheduler(target, said, request.variant)
    return Folder(target), said.note


def _config(text: str, workspace: Workspace) -> Folder:
    path = Path(text).expanduser()
    if not path.is_dir():
        address = hub.Address.parse(text.removeprefix("hf://"))
        path = hub.fetch_configs(address, workspace.settings.hf_token)
    return _folder(path, None)


def _adapt_scheduler(folder: Path, said: Stated, variant: Variant | None) -> None:
    """Complete the scheduler's config by what the checkpoint says and the user's variant."""
    path = folder / "scheduler" / "scheduler_config.json"
    changes = dict(variants.SCHEDULERS[variant]) if variant else {}
    if said.prediction:
        changes["prediction_type"] = said.prediction
    if said.zero_terminal_snr:
        changes |= prediction.ZERO_TERMINAL_SNR
    if changes:
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(config, indent=2) + "\n")
        index = json.loads((folder / selection.INDEX).read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        (folder / selection.INDEX).write_text(json.dumps(index, indent=2) + "\n")
