"""The LoRAs that go with a model: named, read as the service will read them, and copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from export.errors import SourceError
from export.model import weights
from export.model.inspection import Pipeline, slug
from export.model.skeleton import skeleton
from sdxl_bento.errors import AdapterMismatch, readable
from sdxl_bento.manifest import LoraInfo

_KEYS = 8  # so many are named


def name_loras(given: Iterable[str | Path]) -> dict[str, Path]:
    """LoRA files by the name that they will have.

    Args:
        given: paths, or texts `NAME=PATH`.

    Raises:
        SourceError: a file that is none or has another ending; no name, or one that is given twice.
    """
    loras: dict[str, Path] = {}
    for text in given:
        name, path = _split(text)
        if not path.is_file():
            raise SourceError(path, "no such file", "a LoRA in a .safetensors file")
        if path.suffix.lower() != ".safetensors":
            raise SourceError(path, f"a {path.suffix or 'nameless'} file", "a .safetensors file")
        name = slug(name or path.stem, needed=f"--lora name={path}, with a name of a-z and 0-9")
        if name in loras:
            raise SourceError(
                path, f"a second LoRA named {name!r}", f"another name: --lora name={path}"
            )
        loras[name] = path
    return loras


def check_loras(loras: Mapping[str, Path], base: Pipeline) -> list[str]:
    """Read every file with the service's own reader, for a model with the shapes of `base`.

    Returns notes for the user: which tensors of a file have no effect.

    Raises:
        SourceError: a file that the service would refuse; the message names the tensors.
    """
    if not loras:
        return []
    from sdxl_bento.diffusion.lora.files import read_adapter
    from sdxl_bento.diffusion.lora.fitting import Modules

    targets = {
        name: Modules(skeleton(name, base.components[name].config))
        for name in ("unet", "text_encoder", "text_encoder_2")
    }
    notes = []
    for name, path in loras.items():
        try:
            adapter = read_adapter(name, path, targets)
        except AdapterMismatch as error:
            raise SourceError(
                path, f"{error.reason}: {_listed(error.keys)}", "a LoRA that fits the model"
            ) from error
        if adapter.skipped:
            count = len(adapter.skipped)
            notes.append(f"LoRA {name}: {count} tensors have no effect: {_listed(adapter.skipped)}")
    return notes


def write_loras(loras: Mapping[str, Path], folder: Path) -> tuple[LoraInfo, ...]:
    """Copy LoRA files into `folder/loras/`."""
    if loras:
        (folder / "loras").mkdir()
    infos = []
    for name, source in sorted(loras.items()):
        target = folder / "loras" / f"{name}.safetensors"
        weights.copy(source, target)
        infos.append(
            LoraInfo(
                name=name,
                path=f"loras/{name}.safetensors",
                bytes=target.stat().st_size,
                sha256=weights.digest(target),
            )
        )
    return tuple(infos)


def _split(given: str | Path) -> tuple[str, Path]:
    """Name, if there is one, and path. A path may contain `=`, so an existing one comes first."""
    path = Path(given).expanduser()
    name, equals, rest = str(given).partition("=")
    if equals and "/" not in name and not path.exists():
        return name, Path(rest).expanduser()
    return "", path


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(map(readable, keys[:_KEYS])) + (", …" if len(keys) > _KEYS else "")
