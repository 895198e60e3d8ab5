"""The choice of a repository's files: those of the allow-list, each in one variant."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from export.errors import SourceError, UnsafeSourceError
from export.model import weights
from export.model.layout import KINDS
from sdxl_bento.manifest import WeightDtype

INDEX = "model_index.json"


def select(names: Iterable[str], dtype: WeightDtype | None, where: str) -> list[str]:
    """The files that an export takes of a repository, by their paths below its root.

    Raises `SourceError` if it is no pipeline in diffusers' layout, `UnsafeSourceError` if it has
    pickled weights only.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        folders[folder].append(file)
    if INDEX not in folders[""]:
        pickles = sorted(file for file in folders[""] if file.endswith(weights.PICKLES))
        if pickles:
            raise UnsafeSourceError(
                f"{where}/{pickles[0]}", "a pickled checkpoint, which can run code when loaded",
                "safetensors",
            )  # fmt: skip
        raise SourceError(where, f"no {INDEX} in it", "a pipeline in diffusers' layout")
    chosen = [INDEX]
    for component, kind in KINDS.items():
        present = folders.get(component, [])
        chosen += [f"{component}/{file}" for file in (kind.config, *kind.extra_files)
                   if file in present]  # fmt: skip
        if kind.stem and present:
            weight = weights.choose(present, kind.stem, dtype, f"{where}/{component}")
            chosen.append(f"{component}/{weight}")
            if weight.endswith(".json"):
                chosen += _shard_names(component, present, kind.stem, weight)
    return list(dict.fromkeys(chosen))


def patterns() -> list[str]:
    """Every file that an export could take, as glob patterns."""
    globs = config_names()
    for component, kind in KINDS.items():
        if kind.stem:
            globs.append(f"{component}/{kind.stem}*.safetensors*")
    return globs


def config_names() -> list[str]:
    """The files of a pipeline that are not weights: configs and vocabularies."""
    names = [INDEX]
    for component, kind in KINDS.items():
        names += [f"{component}/{file}" for file in (kind.config, *kind.extra_files)]
    return list(dict.fromkeys(names))


def single_files(names: Iterable[str]) -> list[str]:
    """The checkpoints in a repository's root that may hold a whole model in one file."""
    return sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)


def refuse_unsafe(names: Iterable[str], where: str) -> None:
    """Raise `UnsafeSourceError` if a name would lead out of the folder that it is put in."""
    for name in names:
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "//" in name or "\\" in name or "\0" in name:
            raise UnsafeSourceError(
                where, f"a file named {name!r}, which leads out of the folder", "relative names"
            )


def _shard_names(component: str, present: list[str], stem: str, index: str) -> list[str]:
    """Shards of the index's variant, by their names, because the index has not been fetched yet."""
    variant = index.removeprefix(f"{stem}.safetensors.index").removesuffix("json").strip(".")
    shard = re.compile(rf"^{stem}(\.\w+)?-\d+-of-\d+(\.\w+)?\.safetensors$")
    return [
        f"{component}/{file}"
        for file in present
        if (match := shard.match(file)) and (match[1] or match[2] or "").strip(".") == variant
    ]
