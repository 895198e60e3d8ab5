"""Models on the Hugging Face hub: `organisation/model`, or `hf://organisation/model[:revision]`.

Only the files that the export takes are downloaded. They are chosen from the repository's list
before any weights are. They are kept in the hub's own cache, which resumes interrupted downloads.
The commit that was read is recorded, and each file is compared with the hash under which the hub
stores it. A token, if one is needed, is read from `HF_TOKEN` only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError, SourceError, UnsafeSourceError
from export.model import weights
from export.model.layout import VOCABULARY
from export.source import selection
from sdxl_bento.manifest import WeightDtype

_ADDRESS = re.compile(
    r"^(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?P<file>(/[\w. +()-]+)*)(:(?P<revision>[\w./-]+))?$"
)
_SHA256, _SHA1 = re.compile(r"^[0-9a-f]{64}$"), re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class Address:
    """A repository on the hub, or one file in it."""

    repository: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Address:
        """Read `organisation/model[/file.safetensors][:revision]`.

        Raises `SourceError` if `text` has another form.
        """
        match = _ADDRESS.match(text)
        if match is None or ".." in text:
            raise SourceError(
                f"hf://{text}", "no hub id", "hf://organisation/model[/file.safetensors][:revision]"
            )
        own_revision = match["revision"]
        if own_revision and revision and own_revision != revision:
            raise SourceError(f"hf://{text}", f"--revision {revision} too", "one revision")
        file = match["file"].lstrip("/") or None
        if file and file.endswith(weights.PICKLES):
            raise UnsafeSourceError(
                text, "a pickled checkpoint, which can run code when loaded", "safetensors"
            )
        if file and not file.endswith(".safetensors"):
            raise SourceError(f"hf://{text}", f"{file}, a file of another kind", ".safetensors")
        return cls(match["repository"], file, own_revision or revision)


@dataclass(frozen=True)
class Fetched:
    """A snapshot, or one file of it, in the hub's cache."""

    path: Path
    commit: str


def fetch(address: Address, dtype: WeightDtype | None, token: str | None) -> Fetched:
    """Download a pipeline; or the only checkpoint in the root of a repository without one.

    Raises `SourceError` if the hub cannot be reached or has no such model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    if address.file:
        return _fetch_file(address, address.file, token)
    name, revision, commit = address.repository, address.revision, None
    with _reported(name):
        try:
            info = HfApi(token=token or False).model_info(name, revision=revision)
            names = [item.rfilename for item in info.siblings or ()]
            commit = info.sha
            if selection.INDEX not in names and len(selection.single_files(names)) == 1:
                return _fetch_file(address, selection.single_files(names)[0], token)
            selected = _select(names, dtype, name)
        except OfflineModeIsEnabled:
            selected = selection.patterns()  # the files that the cache has
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=selected, token=token or False
            )
        )
    if commit not in (None, folder.name):
        raise SourceError(
            name, f"commit {folder.name} instead of {commit}, so it has just changed",
            "the same command again, or --revision with a commit",
        )  # fmt: skip
    taken = folder.rglob("*") if commit is None else (folder / name for name in selected)
    _check_hashes(path for path in taken if path.is_file())
    return Fetched(folder, folder.name)


def fetch_configs(address: Address, token: str | None) -> Path:
    """A pipeline's configs and vocabularies, without its weights."""
    from huggingface_hub import snapshot_download

    with _reported(address.repository):
        return Path(
            snapshot_download(
                address.repository, revision=address.revision, token=token or False,
                allow_patterns=selection.config_names(),
            )
        )  # fmt: skip


def fetch_vocabulary(repository: str, token: str | None) -> dict[str, Path]:
    """The tokenizer's two files, by name, from the hub or its cache."""
    from huggingface_hub import hf_hub_download

    with _reported(repository):
        files = {
            name: Path(hf_hub_download(repository, f"tokenizer/{name}", token=token or False))
            for name in VOCABULARY
        }
    _check_hashes(files.values())
    return files


def _select(names: list[str], dtype: WeightDtype | None, where: str) -> list[str]:
    single = selection.single_files(names)
    if selection.INDEX not in names and single:
        raise SourceError(
            where, f"{len(single)} checkpoints ({', '.join(single[:3])})",
            f"one of them, as hf://{where}/{single[0]}",
        )  # fmt: skip
    return selection.select(names, dtype, where)


def _fetch_file(address: Address, file: str, token: str | None) -> Fetched:
    from huggingface_hub import hf_hub_download

    with _reported(f"{address.repository}/{file}"):
        path = Path(
            hf_hub_download(
                address.repository, file, revision=address.revision, token=token or False
            )
        )
    _check_hashes([path])
    return Fetched(path, path.parents[file.count("/")].name)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn errors of the hub's client into `SourceError`."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # the client's own errors, and those of two HTTP libraries below it
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(
            name, f"no such folder here, and the hub says: {reason}",
            "an existing folder; or a hub id, a network, and HF_TOKEN if the model is gated",
        ) from error  # fmt: skip


def _check_hashes(paths: Iterable[Path]) -> None:
    """Compare files with their names in the cache, which are hashes.

    These are SHA-256 for large files, and git's SHA-1 for small ones.
    """
    for path in paths:
        blob = path.resolve()
        if _SHA256.match(blob.name):
            actual = weights.digest(blob)
        elif _SHA1.match(blob.name):
            actual = _git_digest(blob)
        else:
            continue
        if actual != blob.name:
            raise SourceError(
                blob, f"a file of hash {actual}, which is not the one of {path.name} on the hub",
                "the whole file; delete this one and export again",
            )  # fmt: skip


def _git_digest(path: Path) -> str:
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
