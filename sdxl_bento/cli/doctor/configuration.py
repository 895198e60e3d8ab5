"""Checks of the settings and of the folders that they name."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sdxl_bento.cli.doctor.findings import Finding, good, note, problem, warning
from sdxl_bento.cli.terminal import size_text
from sdxl_bento.config import Settings, load_settings, unknown_variables
from sdxl_bento.errors import ConfigurationError

_LONGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes
_FILE_SYSTEMS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def settings_or_defaults() -> tuple[Settings, list[Finding]]:
    """The settings and what there is to say of them.

    If one is wrong, these are the defaults, so that the other checks can go on.
    """
    try:
        settings = load_settings()
    except ConfigurationError as error:
        message = str(error).removeprefix("a setting is wrong: ")
        mend = "docs/reference/settings.md has what each may hold"
        return Settings.model_construct(), [problem("settings", message, mend)]
    names = sorted(settings.model_fields_set)
    text = ", ".join(f"SDXL_{name.upper()}" for name in names)
    return settings, [good("settings", f"{text} given" if names else "all have their defaults")]


def misspelt() -> Iterator[Finding]:
    """Environment variables that look like settings but are not."""
    for name, meant in unknown_variables().items():
        hint = f"did you mean {meant}?" if meant else "docs/reference/settings.md lists them"
        yield warning("settings", f"{name} is no setting, so it does nothing", hint)


def loras(settings: Settings) -> Iterator[Finding]:
    """The folder of adapters: whether it can be read, and whether its files are complete."""
    from sdxl_bento.diffusion.lora.folder import look

    folder = settings.lora_dir
    if folder is None:
        return
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        yield warning(
            "LoRAs", f"SDXL_LORA_DIR is {folder}, which is no folder that can be read",
            "make it, mend its permissions, or unset SDXL_LORA_DIR",
        )  # fmt: skip
        return
    found = look(folder)
    for below, reason in found.passed_over.items():
        yield warning("LoRAs", f"{folder}: {below} is not used: {reason}", "rename or remove it")
    files = [file.path for file in found.files.values()]
    broken = 0
    for path in files:
        reason = not_safetensors(path)
        if reason:
            broken += 1
            yield warning("LoRAs", f"{path}: {reason}", "download it again, or remove it")
    others = [p.name for p in folder.iterdir() if p.suffix in (".pt", ".bin", ".ckpt", ".pth")]
    if others:
        yield note("LoRAs", f"pickles are not read: {', '.join(sorted(others))}")
    yield good("LoRAs", f"{len(files) - broken} in {folder}")


def not_safetensors(path: Path) -> str:
    """Why the file is not a complete safetensors file; empty if it is. Reads only its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= min(_LONGEST_HEADER, size):
                return "not a safetensors file"
            header = json.loads(file.read(length))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "not a safetensors file"
    if 8 + length + max(ends, default=0) != size:
        return f"cut short: {size} bytes, {8 + length + max(ends, default=0)} expected"
    return ""


def image_store(settings: Settings) -> Iterator[Finding]:
    """The image store: a folder with enough room, or an object store whose package is there."""
    where = str(settings.store or tempfile.gettempdir())
    scheme = where.partition(":/")[0] if ":/" in where else ""
    if scheme and scheme != "file":
        package = _FILE_SYSTEMS.get(scheme)
        if package is not None and find_spec(package) is None:
            extra = {"s3fs": "s3", "gcsfs": "gcs"}[package]
            yield problem(
                "image store", f"SDXL_STORE is {where}, and {package} is not installed",
                f"pip install 'sdxl-bento[{extra}]'",
            )  # fmt: skip
        else:
            yield good("image store", f"{where} (it was not connected to)")
        return
    folder = _existing(Path(where))
    if not os.access(folder, os.W_OK | os.X_OK):
        yield problem(
            "image store", f"{folder} cannot be written to",
            "mend its permissions, or name another folder in SDXL_STORE",
        )  # fmt: skip
        return
    free, most = shutil.disk_usage(folder).free, settings.store_max_mb << 20
    if free < most:
        yield warning(
            "image store",
            f"{where} has {size_text(free)} free, SDXL_STORE_MAX_MB allows {size_text(most)}",
            "make room, or lower SDXL_STORE_MAX_MB",
        )
    else:
        yield good("image store", f"{where}, {size_text(free)} free")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
