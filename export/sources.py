"""Find a source: the embedded model, a folder, or a repository on the Hugging Face hub.

From the hub only the files that the export takes are fetched, chosen from the repository's list
before any weights are. The token, if one is needed, comes from the environment (`HF_TOKEN`).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export import weights
from export.embedded import WEIGHTS
from export.errors import ExportError, SourceError, UnsafeSourceError
from export.inspection import Folder
from export.layout import KINDS
from sdxl_bento.manifest import WeightDtype

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True)
class Source:
    """A pipeline folder at hand. `location` and `revision` are what the manifest records."""

    kind: Literal["embedded", "folder", "hub"]
    location: str
    folder: Folder
    revision: str | None = None


def resolve(text: str, revision: str | None = None, dtype: WeightDtype | None = None) -> Source:
    """What `text` names. An existing path wins over a hub id of the same spelling.

    Raises `SourceError` if it names nothing, or if the hub cannot be reached.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return Source("folder", path.resolve().name, _folder(path), revision)
    if path.is_file():
        if path.suffix in weights.PICKLES:
            raise UnsafeSourceError(
                path, "a pickled checkpoint, which can run code when loaded", "safetensors"
            )
        raise SourceError(path, "a single file", "a folder in diffusers' layout, or a hub id")
    if _HUB_ID.match(text) and not text.endswith((*weights.PICKLES, ".safetensors")):
        return _from_hub(text, revision, dtype)
    raise SourceError(
        text, "neither a folder nor a hub id", f"a path, 'organisation/model', or '{EMBEDDED}'"
    )


def embedded() -> tuple[Source, Source, list[Path]]:
    """The model that ships with the repository: base, refiner, LoRA files."""
    base = Source("embedded", EMBEDDED, Folder(WEIGHTS / "base"))
    refiner = Source("embedded", EMBEDDED, Folder(WEIGHTS / "refiner"))
    return base, refiner, sorted((WEIGHTS / "loras").glob("*.safetensors"))


def _folder(path: Path) -> Folder:
    """A folder; in the hub's cache, where files are links into `blobs`, those may be followed."""
    root = path.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        return Folder(root, guard=root.parent.parent)
    return Folder(root)


def _from_hub(name: str, revision: str | None, dtype: WeightDtype | None) -> Source:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    token: str | bool = os.environ.get("HF_TOKEN") or False
    try:
        try:
            info = HfApi(token=token).model_info(name, revision=revision)
            wanted = hub_files((item.rfilename for item in info.siblings or ()), dtype, name)
        except OfflineModeIsEnabled:
            wanted = _patterns()  # whatever an earlier download has left in the cache
        snapshot = snapshot_download(name, revision=revision, allow_patterns=wanted, token=token)
    except ExportError:
        raise
    except Exception as error:  # the client's own errors, and those of two HTTP libraries below it
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(
            name, f"no such folder here, and the hub says: {reason}",
            "an existing folder; or a hub id, a network, and HF_TOKEN if the model is gated",
        ) from error  # fmt: skip
    root = Path(snapshot)
    return Source("hub", name, _folder(root), root.name)


def hub_files(names: Iterable[str], dtype: WeightDtype | None, where: str) -> list[str]:
    """Of a repository's files, those that an export takes."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        folders[folder].append(file)
    wanted = ["model_index.json"] if "model_index.json" in folders[""] else []
    for component, kind in KINDS.items():
        present = folders.get(component, [])
        wanted += [f"{component}/{file}" for file in (kind.config, *kind.extra_files)
                   if file in present]  # fmt: skip
        if kind.stem and present:
            chosen = weights.choose(present, kind.stem, dtype, f"{where}/{component}")
            wanted.append(f"{component}/{chosen}")
            if chosen.endswith(".json"):
                wanted += _shard_names(component, present, kind.stem, chosen)
    if "model_index.json" not in wanted:
        raise SourceError(
            where, "a repository without model_index.json", "a pipeline in diffusers' layout"
        )
    return list(dict.fromkeys(wanted))


def _shard_names(component: str, present: list[str], stem: str, index: str) -> list[str]:
    """Shards by name, before the index has been fetched: those of its variant, or of none."""
    variant = index.removeprefix(f"{stem}.safetensors.index").removesuffix("json").strip(".")
    shard = re.compile(rf"^{stem}(\.\w+)?-\d+-of-\d+(\.\w+)?\.safetensors$")
    return [
        f"{component}/{file}"
        for file in present
        if (found := shard.match(file)) and (found[1] or found[2] or "").strip(".") == variant
    ]


def _patterns() -> list[str]:
    patterns = ["model_index.json"]
    for component, kind in KINDS.items():
        stems = [f"{kind.stem}*.safetensors*"] if kind.stem else []
        patterns += [f"{component}/{file}" for file in (kind.config, *kind.extra_files, *stems)]
    return patterns
