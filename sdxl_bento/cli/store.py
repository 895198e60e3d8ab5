"""BentoML's model store, read without BentoML, whose import takes longer than the reading.

A model is a folder `<home>/models/<name>/<version>` with BentoML's `model.yaml`; `<name>/latest`
holds the version that the name alone stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdxl_bento.config import bentoml_home
from sdxl_bento.errors import ConfigurationError, ModelNotFound
from sdxl_bento.manifest import FILE_NAME, Manifest


@dataclass(frozen=True)
class Stored:
    """A model in the store that `export` wrote.

    If its manifest cannot be read, `manifest` is None and `problem` says why.
    """

    name: str
    version: str
    folder: Path
    is_latest: bool
    manifest: Manifest | None
    problem: str = ""

    @property
    def tag(self) -> str:
        """The tag that settings and BentoML use."""
        return f"{self.name}:{self.version}"


def versions() -> Iterator[Path]:
    """The folder of every version of every model in the store, complete or not."""
    for name in sorted(_folders(bentoml_home() / "models")):
        yield from sorted(_folders(name))


def folders() -> list[Path]:
    """The folders of the models that `export` wrote."""
    return [folder for folder in versions() if (folder / FILE_NAME).is_file()]


def stored() -> list[Stored]:
    """The models that `export` wrote, with their manifests."""
    return [_read(folder) for folder in folders()]


def find(tag: str) -> Stored:
    """The model of a tag, which may leave the version out or say `latest`.

    Raises:
        ModelNotFound: the store has no such model.
    """
    name, _, version = tag.partition(":")
    for each in stored():
        if each.name == name and (version == each.version or _means_latest(version, each)):
            return each
    hint = "`python -m export embedded` makes the one that comes with this project"
    raise ModelNotFound(tag, [each.tag for each in stored()], hint)


def latest(name: Path) -> str | None:
    """The version that a model's name alone stands for, or None if there is none."""
    try:
        return (name / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _means_latest(version: str, model: Stored) -> bool:
    return version in ("", "latest") and model.is_latest


def _read(folder: Path) -> Stored:
    manifest, problem = None, ""
    try:
        manifest = Manifest.load(folder)
    except ConfigurationError as error:
        problem = str(error)
    is_latest = latest(folder.parent) == folder.name
    return Stored(folder.parent.name, folder.name, folder, is_latest, manifest, problem)


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return []
