"""`sdxl-bento models`, `loras` and `samplers`: the names that a call may use."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_bento.cli.options import Json, Url
from sdxl_bento.cli.terminal import emit_json, emit_table, reporting, say, size_text

if TYPE_CHECKING:
    from sdxl_bento.cli.store import Stored
    from sdxl_bento.config import Settings

Row = dict[str, Any]


def models(url: Url = None, as_json: Json = False) -> None:
    """List models: those that a server has loaded, or those in BentoML's local store."""
    with reporting(as_json):
        served = _from_server(url, "models")
        rows = _stored_models() if served is None else served
        if as_json:
            emit_json({"models": rows})
        elif served is not None:
            emit_table(
                ("model", "", "size", "refiner", "dtype", "backend", "device", ">loaded in"),
                [_served_model(row) for row in rows],
            )
        elif rows:
            emit_table(
                ("model", "", "size", "refiner", "dtype", "backends", ">on disk"),
                [_stored_model(row) for row in rows],
            )
        else:
            say("BentoML's store has no model of ours; `python -m export embedded` makes one.")


def loras(url: Url = None, as_json: Json = False) -> None:
    """List adapters (LoRA): a server's, or those of the local models and of SDXL_LORA_DIR."""
    with reporting(as_json):
        served = _from_server(url, "loras")
        rows = _stored_loras() if served is None else served
        if as_json:
            emit_json({"loras": rows})
        elif rows:
            emit_table(
                ("LoRA", ">size", "models", ""),
                [
                    (
                        row["name"],
                        size_text(row["size_bytes"]),
                        ", ".join(row["models"]),
                        _state(row),
                    )
                    for row in rows
                ],
            )
        else:
            say("There are no adapters.")


def samplers(url: Url = None, as_json: Json = False) -> None:
    """List samplers: a server's, or those of this version."""
    with reporting(as_json):
        names = _from_server(url, "samplers")
        if names is None:
            from sdxl_bento.sampler_names import SAMPLERS

            names = list(SAMPLERS)
        if as_json:
            emit_json({"samplers": names})
        else:
            sys.stdout.writelines(f"{name}\n" for name in names)


def _from_server(url_option: str | None, name: str) -> list[Any] | None:
    """A server's list of that name, or None if no server is named."""
    from sdxl_bento.cli.connect import server_url

    url = server_url(url_option)
    if url is None:
        return None
    from sdxl_bento.cli.remote import get

    return list(get(url, f"/{name}")[name])


def _stored_models() -> list[Row]:
    from sdxl_bento.cli.store import stored
    from sdxl_bento.config import load_settings

    settings = load_settings()
    return [_described(model, settings) for model in stored()]


def _described(model: Stored, settings: Settings) -> Row:
    row: Row = {
        "tag": model.tag,
        "name": model.name,
        "version": model.version,
        "latest": model.is_latest,
        "default": _is(model, settings.model),
        "served": any(_is(model, tag) for tag in settings.model_tags),
        "problem": model.problem or None,
    }
    manifest = model.manifest
    if manifest is None:
        return row
    return row | {
        "variant": manifest.variant,
        "width": manifest.base.width,
        "height": manifest.base.height,
        "has_refiner": manifest.refiner is not None,
        "dtype": manifest.dtype,
        "backends": list(dict.fromkeys(_label(info.label) for info in manifest.backends)),
        "loras": [lora.name for lora in manifest.loras],
        "size_bytes": manifest.bytes,
        "created": manifest.created.isoformat(),
    }


def _is(model: Stored, tag: str) -> bool:
    name, _, version = tag.partition(":")
    latest = version in ("", "latest") and model.is_latest
    return model.name == name and (latest or model.version == version)


def _label(label: str) -> str:
    return "eager" if label.startswith("eager") else label


def _stored_model(row: Row) -> tuple[str, ...]:
    marks = ("default" if row["default"] else "served" if row["served"] else "",)
    if row["problem"]:
        return (row["tag"], *marks, "cannot be read: see `sdxl-bento doctor`", "", "", "", "")
    return (
        row["tag"],
        *marks,
        f"{row['width']}x{row['height']}",
        "yes" if row["has_refiner"] else "no",
        row["dtype"],
        ", ".join(row["backends"]),
        size_text(row["size_bytes"]),
    )


def _served_model(row: Row) -> tuple[str, ...]:
    return (
        _named(row["name"], row["tag"]),
        "default" if row["default"] else "",
        f"{row['default_width']}x{row['default_height']}",
        "yes" if row["has_refiner"] else "no",
        row["dtype"],
        row["backend"],
        row["device"],
        f"{row['load_seconds']:.1f} s",
    )


def _named(name: str, tag: str) -> str:
    """The tag. Calls use its first part as the name, unless two models share it."""
    return tag if name in (tag, tag.partition(":")[0]) else f"{name} ({tag})"


def _stored_loras() -> list[Row]:
    """The adapters that a server with these settings would have."""
    from sdxl_bento.cli.store import stored
    from sdxl_bento.config import load_settings
    from sdxl_bento.diffusion.lora.folder import Found, look

    settings = load_settings()
    served = [m for m in stored() if any(_is(m, tag) for tag in settings.model_tags)]
    found = Found() if settings.lora_dir is None else look(settings.lora_dir)
    rows: dict[str, Row] = {}
    for model in served:
        inside = model.manifest.loras if model.manifest is not None else ()
        sizes = {lora.name: _size(model.folder / lora.path) for lora in inside}
        sizes |= {name: file.size_bytes for name, file in found.files.items()}
        for name, size in sizes.items():
            row = rows.setdefault(name, {"name": name, "models": [], "size_bytes": size})
            row["models"].append(model.name)
            row["pinned"] = name in settings.lora_pinned
    return _by_name(rows.values())


def _by_name(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["name"]))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _state(row: Row) -> str:
    return ", ".join(word for word in ("pinned", "loaded") if row.get(word))
