"""Refuse a pipeline's folder that is not what an export writes, before anything in it is loaded.

The libraries would load more than an export writes: a pickle where the safetensors are missing, an
adapter's base model by its name on the hub, code of a config. What they may find is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.layout import (
    COMPONENTS,
    KINDS,
    PICKLES,
    Kind,
    custom_code,
    is_beside,
    leads_out,
    unknown_class,
)
from sdxl_bento.manifest import PipelineInfo

_AGAIN = "export the model again"


def check_pipeline(folder: Path, info: PipelineInfo, *, unread: frozenset[str]) -> None:
    """Raise unless the pipeline consists of known classes, and of files that an export writes.

    Args:
        folder: of the model.
        info: of the pipeline.
        unread: components whose weights are not loaded, so that they may be missing.

    Raises:
        ConfigurationError: a class is not known; there are pickles, or no safetensors; a file is
            not one that an export writes; a link leads out of the model; a config loads code.
    """
    missing = [name for name in COMPONENTS["refiner"] if name not in info.components]
    if missing:
        raise ConfigurationError(
            f"{folder / info.path}: the manifest has no component {missing[0]}; {_AGAIN}"
        )
    for name, component in info.components.items():
        place = folder / info.path / name
        if allowed := unknown_class(name, component.library, component.class_name):
            raise ConfigurationError(
                f"{place}: the manifest has {component.library}.{component.class_name}, "
                f"and what may be loaded is: {allowed}"
            )
        _check_component(folder, place, KINDS[name], needs_weights=name not in unread)


def check_link(path: Path, folder: Path) -> None:
    """Raise `ConfigurationError` if a symbolic link at `path` leads out of the model's folder."""
    if leads_out(path, folder):
        raise ConfigurationError(
            f"{path} is a link to {path.resolve()}, and only files inside the model's own folder "
            "are loaded; put a copy in its place"
        )


def _check_component(folder: Path, place: Path, kind: Kind, *, needs_weights: bool) -> None:
    check_link(place, folder)
    try:
        found = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise ConfigurationError(f"{place}: cannot be read ({error}); {_AGAIN}") from error
    for name in sorted(found):
        check_link(place / name, folder)
    allowed = {kind.config, *kind.extra_files}
    if kind.stem is not None:
        allowed |= _weights(place, kind, found, needed=needs_weights)
    for name in sorted(found - allowed):
        raise ConfigurationError(
            f"{place / name}: no export writes this file, and what it holds might be loaded; "
            "remove it"
        )
    for name in sorted(found):
        if name.endswith(".json") and name in (kind.config, "tokenizer_config.json"):
            entry = custom_code(_json(place / name))
            if entry:
                raise ConfigurationError(
                    f"{place / name}: {entry}, which would load code of the model's own; {_AGAIN}"
                )


def _weights(place: Path, kind: Kind, found: set[str], *, needed: bool) -> set[str]:
    """The names of the weight files in `place`, of which every one is safetensors."""
    pickles = sorted(name for name in found if name.endswith(PICKLES))
    if pickles:
        raise ConfigurationError(
            f"{place / pickles[0]}: a pickle, which can run code when it is loaded; only "
            f"{kind.weights} is; remove it, or {_AGAIN}"
        )
    if kind.index in found and kind.weights in found:
        raise ConfigurationError(f"{place}: both {kind.weights} and {kind.index}; {_AGAIN}")
    names = {kind.weights}
    if kind.index in found:
        names = _shards(place / kind.index)
    if needed and (missing := sorted(names - found)):
        raise ConfigurationError(f"{place}: no {missing[0]}; {_AGAIN}")
    return names | {kind.index}


def _shards(index: Path) -> set[str]:
    where = _json(index).get("weight_map")
    names = set(where.values()) if isinstance(where, dict) else set()
    for name in sorted(map(str, names)):
        if not is_beside(name) or not name.endswith(".safetensors"):
            raise ConfigurationError(
                f"{index}: a shard at {name!r}, and only safetensors beside the index are loaded; "
                f"{_AGAIN}"
            )
    if not names:
        raise ConfigurationError(f"{index}: it names no shards; {_AGAIN}")
    return names


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: JSON of type {type(content).__name__}; {_AGAIN}")
    return content
