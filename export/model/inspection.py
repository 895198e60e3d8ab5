"""Read a pipeline folder without running its code, and refuse what is not a valid SDXL model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from export.errors import NotSDXLError, SourceError, UnsafeSourceError
from export.model import variants, weights
from export.model.geometry import Geometry, check_geometry
from export.model.layout import COMPONENTS, IGNORED, KINDS, PIPELINE_CLASSES, Library
from export.model.prediction import scheduler_changes
from sdxl_bento.layout import custom_code, leads_out, unknown_class
from sdxl_bento.manifest import PredictionType, Role, Variant, WeightDtype

Json = dict[str, Any]
FAMILY_VAE = [128, 256, 512, 512]  # block_out_channels


@dataclass(frozen=True)
class Component:
    """One component of a source. `files` maps names in the written model to files of the source.

    `rewritten`: its config is not the source's and has to be written anew.
    """

    name: str
    library: Library
    class_name: str
    config: Json
    files: Mapping[str, Path]
    dtype: WeightDtype | None = None
    index: Json | None = None
    rewritten: bool = False


@dataclass(frozen=True)
class Pipeline:
    """A source pipeline that has passed every check. `flags` go into `model_index.json`."""

    role: Role
    components: Mapping[str, Component]
    geometry: Geometry
    flags: Mapping[str, bool] = field(default_factory=dict)

    @property
    def dtype(self) -> WeightDtype:
        """The dtype of the UNet's weights, which is taken for that of the pipeline."""
        return self.components["unet"].dtype or "fp32"

    @property
    def variant(self) -> Variant:
        """The variant of SDXL, by the config of its scheduler."""
        return variants.recognise(self.components["scheduler"].config)

    @property
    def has_family_vae(self) -> bool:
        """Whether its VAE has the layers of SDXL's, and therefore SDXL's latent space."""
        return self.components["vae"].config.get("block_out_channels") == FAMILY_VAE

    def files(self) -> dict[str, Path]:
        """Every file that is taken, by its path below the pipeline's folder."""
        return {
            f"{component.name}/{name}": path
            for component in self.components.values()
            for name, path in component.files.items()
        }


class Folder:
    """A source folder. Files outside of `guard`, to which links may lead, are not read."""

    def __init__(self, root: Path, guard: Path | None = None) -> None:
        self.root = root
        self._guard = (guard or root).resolve()

    def names(self, *parts: str) -> list[str]:
        """Names of the files in a subfolder; empty if there is no such folder."""
        folder = self.root.joinpath(*parts)
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def file(self, *parts: str) -> Path:
        """An existing file. Raises `UnsafeSourceError` if a symlink leads out of the source."""
        path = self.root.joinpath(*parts)
        if leads_out(path, self._guard):
            raise UnsafeSourceError(
                path, f"a link to {path.resolve()}", "files inside the folder that was named"
            )
        if not path.is_file():
            raise SourceError(path, "no such file", "a complete pipeline folder")
        return path

    def json(self, *parts: str) -> Json:
        """The object in a JSON file."""
        path = self.file(*parts)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SourceError(path, f"broken JSON ({error})", "a JSON object") from None
        if not isinstance(content, dict):
            raise SourceError(path, f"JSON of type {type(content).__name__}", "a JSON object")
        return content


def read_pipeline(
    folder: Folder,
    role: Role,
    dtype: WeightDtype | None,
    prediction: PredictionType | None = None,
    zero_terminal_snr: bool | None = None,
) -> Pipeline:
    """Check everything that can be checked without loading weights.

    Args:
        folder: of the pipeline.
        role: that the pipeline is to have.
        dtype: the variant of the weights to prefer where there are several.
        prediction, zero_terminal_snr: in place of what the source says; None: as it says.

    Raises:
        SourceError: a file is missing or broken.
        UnsafeSourceError: the source would run code, or links out of its folder.
        NotSDXLError: it is another kind of model.
    """
    index = read_index(folder, role)
    components = {name: _read_component(folder, name, index, dtype) for name in COMPONENTS[role]}
    components["scheduler"] = _scheduler(
        folder, components["scheduler"], prediction, zero_terminal_snr
    )
    geometry = check_geometry(
        folder.root, role, {name: part.config for name, part in components.items()}
    )
    flags = {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True)}
    if role == "refiner":
        flags["requires_aesthetics_score"] = index.get("requires_aesthetics_score", False)
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise SourceError(
                folder.root / "model_index.json", f"{name}: {flag!r}", "true or false"
            )
    return Pipeline(role, components, geometry, flags)


def read_index(folder: Folder, role: Role) -> Json:
    """The content of `model_index.json`. Custom code and other kinds of pipeline are refused."""
    where = folder.root / "model_index.json"
    if not where.is_file():
        _refuse_without_index(folder, where)
    index = folder.json("model_index.json")
    _refuse_custom_code(where, index)
    for name, entry in index.items():
        if (isinstance(entry, list) or name in KINDS) and not name.startswith("_"):
            _check_entry(where, name, entry)
    _check_role(where, index, role)
    return index


def _refuse_without_index(folder: Folder, where: Path) -> NoReturn:
    """Say what a folder without `model_index.json` seems to be."""
    names = folder.names()
    parts = [name for name in names if name in KINDS]
    checkpoints = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(weights.PICKLES)]
    if parts:
        raise SourceError(
            where, f"no such file, but {', '.join(parts)}",
            "the model_index.json that belongs to them",
        )  # fmt: skip
    if len(checkpoints) > 1:
        raise SourceError(
            folder.root, f"{len(checkpoints)} checkpoints ({', '.join(checkpoints[:3])})",
            f"one of them, as {folder.root / checkpoints[0]}",
        )  # fmt: skip
    if pickles:
        raise UnsafeSourceError(
            folder.root / pickles[0], "a pickled checkpoint, which can run code when loaded",
            "safetensors",
        )  # fmt: skip
    others = ", ".join(names[:6]) or "an empty folder"
    raise SourceError(where, f"no such file beside {others}", "a pipeline in diffusers' layout")


def _refuse_custom_code(where: Path, config: Json) -> None:
    if entry := custom_code(config):
        raise UnsafeSourceError(
            where, f"{entry}, which loads code of the model's own", "a model that needs none"
        )


def _check_entry(where: Path, name: str, entry: object) -> None:
    """A component's `[library, class]` must be on the allow-list; `[null, null]` is absent."""
    match entry:
        case None | [None, None]:
            return
        case [str(library), str(class_name)]:
            pass
        case _:
            raise SourceError(where, f"{name}: {entry!r}"[:200], "[library, class]")
    if library not in ("diffusers", "transformers"):
        raise UnsafeSourceError(
            where, f"{name}: {class_name} from {library!r}, code of the model's own",
            "classes of diffusers and transformers only",
        )  # fmt: skip
    if name in IGNORED:
        return
    if allowed := unknown_class(name, library, class_name):
        raise NotSDXLError(where, f"{name}: {library}.{class_name}", allowed)


def _check_role(where: Path, index: Json, role: Role) -> None:
    has_first_encoder = _present(index, "text_encoder")
    if role == "base" and not has_first_encoder and index.get("requires_aesthetics_score"):
        raise NotSDXLError(
            where, "a refiner (no text_encoder, requires_aesthetics_score)",
            "a base model; give this one with --refiner",
        )  # fmt: skip
    if role == "refiner" and has_first_encoder:
        raise NotSDXLError(where, "a base model (it has text_encoder)", "a refiner for --refiner")
    class_name = index.get("_class_name")
    if class_name not in PIPELINE_CLASSES[role]:
        raise NotSDXLError(
            where, f"_class_name: {class_name!r}", f"one of {', '.join(PIPELINE_CLASSES[role])}"
        )
    for name in COMPONENTS[role]:
        if not _present(index, name):
            present = [key for key in COMPONENTS["base"] if _present(index, key)]
            raise SourceError(
                where, f"no component {name} (there are {', '.join(present)})",
                f"all of {', '.join(COMPONENTS[role])}",
            )  # fmt: skip


def _present(index: Json, name: str) -> bool:
    return index.get(name) not in (None, [None, None])


def _read_component(
    folder: Folder, name: str, pipeline_index: Json, dtype: WeightDtype | None
) -> Component:
    kind = KINDS[name]
    class_name = pipeline_index[name][1]
    names = folder.names(name)
    if not names:
        raise SourceError(folder.root / name, "no such folder", f"the files of {class_name}")
    files: dict[str, Path] = {}
    config: Json = {}
    if kind.config in names or not kind.extra_files:
        config = folder.json(name, kind.config)
        files[kind.config] = folder.file(name, kind.config)
        _refuse_custom_code(folder.root / name / kind.config, config)
    files |= {extra: folder.file(name, extra) for extra in kind.extra_files if extra in names}
    if kind.stem is None:
        _check_tokenizer(folder, name, files)
        return Component(name, kind.library, class_name, config, files)
    chosen = weights.choose(names, kind.stem, dtype, folder.root / name)
    stored, index = _weight_files(folder, name, chosen, kind.stem)
    dtypes: Counter[WeightDtype] = Counter()
    for file, path in stored.items():
        if not file.endswith("json"):
            dtype_of_file, tensors = weights.inspect(path)
            _refuse_wrapped(path, tensors)
            dtypes[dtype_of_file] += 1
    most = dtypes.most_common(1)[0][0]
    return Component(name, kind.library, class_name, config, files | stored, most, index)


def _refuse_wrapped(path: Path, tensors: tuple[str, ...]) -> None:
    for wrapper, program in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel")):
        if any(name.startswith(wrapper) for name in tensors):
            raise SourceError(
                path, f"tensors under {wrapper!r}, as {program} names them",
                "the weights of the module inside, saved by its own save_pretrained",
            )  # fmt: skip


def _scheduler(
    folder: Folder,
    scheduler: Component,
    prediction: PredictionType | None,
    zero_terminal_snr: bool | None,
) -> Component:
    """With the prediction type in diffusers' spelling, and with what the user has said."""
    where = folder.root / "scheduler" / "scheduler_config.json"
    changes = scheduler_changes(where, scheduler.config, prediction, zero_terminal_snr)
    if not changes:
        return scheduler
    return replace(scheduler, config=scheduler.config | changes, rewritten=True)


def _check_tokenizer(folder: Folder, name: str, files: Mapping[str, Path]) -> None:
    if name.startswith("tokenizer") and not (
        "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= set(files)
    ):
        raise SourceError(
            folder.root / name, f"only {', '.join(files) or 'unknown files'}",
            "vocab.json and merges.txt, or tokenizer.json",
        )  # fmt: skip


def _weight_files(
    folder: Folder, component: str, chosen: str, stem: str
) -> tuple[dict[str, Path], Json | None]:
    """Weight files by their plain names, and the index if they are shards."""
    path = folder.file(component, chosen)
    if not chosen.endswith(".json"):
        return {f"{stem}.safetensors": path}, None
    index, names = weights.shards(path)
    files = {name: folder.file(component, name) for name in names}
    return {f"{stem}.safetensors.index.json": path, **files}, index


def slug(text: str, needed: str = "--name with some") -> str:
    """`text` as a BentoML model name or the name of a LoRA; `needed` is said if nothing is left."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    if not name:
        raise SourceError(text, "a name without letters or digits of a-z and 0-9", needed)
    return name
