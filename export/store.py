"""The BentoML model store: finding earlier exports, and adding a model atomically.

`bentoml.models.create` copies files one by one into the store. A process that is killed meanwhile
leaves a folder without `model.yaml` there, after which even `bentoml models list` fails. Here a
model is assembled in the store's `tmp` folder and moved into place by one rename.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.errors import ExportError
from sdxl_bento import __version__
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.integrity import content_files, damage
from sdxl_bento.manifest import Manifest

_PREFIX = "sdxl-export-"


def store() -> Path:
    """The folder of the model store, `$BENTOML_HOME/models`; it is created if it is missing."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return Path(BentoMLContainer.model_store_dir.get())


def check_name(name: str) -> None:
    """Raise `ExportError` unless BentoML accepts `name` for a model."""
    from bentoml import Tag
    from bentoml.exceptions import BentoMLException

    try:
        tag = Tag.from_taglike(name)
    except (BentoMLException, ValueError) as error:
        raise ExportError(f"--name {name!r}: {error}") from None
    if tag.name != name:  # BentoML lowers capitals and splits off what follows a colon
        raise ExportError(f"--name {name!r}: lower-case letters, digits, '.', '_' and '-' only")


def content_bytes(folder: Path) -> int:
    """Size of a model in bytes, without the manifest, BentoML's file, profiles and caches."""
    return sum(path.stat().st_size for path in content_files(folder).values())


def find(
    name: str, sha256: str, dtype: str, fits: Callable[[Manifest], bool] = lambda _: True
) -> str | None:
    """The tag of the newest complete model with this name and content; None if there is none.

    The model is made the `latest` one, so that its name without a version leads to it.
    """
    for folder in same_content(name, sha256, dtype):
        if fits(Manifest.load(folder)):
            _set_latest(folder)
            return f"{name}:{folder.name}"
    return None


def same_content(name: str, sha256: str, dtype: str) -> Iterator[Path]:
    """Folders of complete models with this name and content, the newest first.

    Models of another version of the exporter are left out, because it may write other files. So
    are those that are damaged or that have no digests: the export writes the model anew.
    """
    folders = [path for path in (store() / name).glob("*") if (path / "model.yaml").is_file()]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            manifest = Manifest.load(folder)
        except ConfigurationError:
            continue  # of an older schema
        same = (manifest.source.sha256, manifest.dtype) == (sha256, dtype)
        same = same and manifest.versions.sdxl_bento == __version__
        same = same and bool(manifest.files) and manifest.bytes == content_bytes(folder)
        if same and not damage(folder, manifest):
            yield folder


@contextmanager
def staging() -> Iterator[Path]:
    """A temporary folder on the file system of the store. It is removed at the end in any case.

    Folders that killed exports have left are removed too. They are told from those in use by a
    lock, which only a running process holds.
    """
    parent = store().parent / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".sdxl-export-lock").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        for leftover in parent.glob(f"{_PREFIX}*"):
            _remove_if_abandoned(leftover)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        with (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another export is at work in it
    except FileNotFoundError:
        pass  # killed before it had created its lock
    shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, name: str, labels: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """Move a finished model into the store, as its latest version; returns its tag."""
    from bentoml._internal.models.model import Model, ModelContext

    model = Model.create(
        name, module="", api_version="v1", signatures={}, labels=dict(labels),
        metadata=dict(metadata), context=ModelContext(framework_name="", framework_versions={}),
    )  # fmt: skip
    model.flush()  # type: ignore[no-untyped-call]
    shutil.copyfile(model.path_of("model.yaml"), folder / "model.yaml")
    version = model.tag.version
    if version is None:
        raise ExportError("BentoML made no version")
    target = store() / name / version
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    folder.rename(target)
    _set_latest(target)
    return f"{name}:{version}"


def _set_latest(model: Path) -> None:
    latest = model.parent / "latest"
    draft = model.parent / f".latest-{model.name}"
    draft.write_text(model.name)
    draft.replace(latest)
