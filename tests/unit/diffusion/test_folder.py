"""A model's folder in which there is what no export writes is refused before anything is loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_bento.diffusion.folder import check_pipeline
from sdxl_bento.diffusion.model import Model
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.layout import COMPONENTS, KINDS
from sdxl_bento.manifest import ComponentInfo, PipelineInfo
from tests.support.loaded_models import CPU
from tests.support.manifests import HASH, manifest

UNET = "base/unet/diffusion_pytorch_model"
INDEX = f"{UNET}.safetensors.index.json"


def pipeline(**classes: tuple[str, str]) -> PipelineInfo:
    """A base pipeline; `classes` are other libraries and classes of components."""
    components = {
        name: ComponentInfo.model_construct(library=library, class_name=cls, bytes=0, sha256=HASH)
        for name in COMPONENTS["base"]
        for library, cls in [classes.get(name, (KINDS[name].library, KINDS[name].classes[0]))]
    }
    return manifest().base.model_copy(update={"components": components})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty files under the names of a base model's."""
    model = tmp_path / "model"
    for name in COMPONENTS["base"]:
        place, kind = model / "base" / name, KINDS[name]
        place.mkdir(parents=True)
        (place / kind.config).write_text("{}")
        if kind.stem is not None:
            (place / f"{kind.stem}.safetensors").write_bytes(b"")
    return model


def check(folder: Path, info: PipelineInfo | None = None, unread: str = "") -> None:
    check_pipeline(folder, info or pipeline(), unread=frozenset(unread.split()))


def test_what_an_export_writes_passes(folder: Path) -> None:
    check(folder)
    (folder / f"{UNET}.safetensors").unlink()
    check(folder, unread="unet")
    for part in ("00001-of-00002", "00002-of-00002"):
        (folder / f"{UNET}-{part}.safetensors").write_bytes(b"")
    shards = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
              "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}  # fmt: skip
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    (folder / "base/unet/.DS_Store").write_bytes(b"")
    check(folder)


def test_a_link_within_the_model_passes_wherever_the_model_is(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / f"{UNET}.safetensors").rename(folder / "data" / "weights")
    (folder / f"{UNET}.safetensors").symlink_to("../../data/weights")
    elsewhere = folder.parent / "store"
    elsewhere.symlink_to(folder)
    check(elsewhere)


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def pickled(stem: str, suffix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / f"{stem}.safetensors").rename(folder / f"{stem}{suffix}")

    return change


def index(shards: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / f"{UNET}.safetensors").unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": shards}))

    return change


def link_a_folder(folder: Path) -> None:
    (folder / "base/vae").rename(folder.parent / "vae")
    (folder / "base/vae").symlink_to(folder.parent / "vae")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickled(UNET, ".bin"), "unet/diffusion_pytorch_model.bin: a pickle"),
        (pickled("base/vae/diffusion_pytorch_model", ".ckpt"), ".ckpt: a pickle"),
        (pickled("base/text_encoder/model", ".pt"), "model.pt: a pickle"),
        (put("base/text_encoder_2/pytorch_model.bin", ""), "pytorch_model.bin: a pickle"),
        (lambda folder: (folder / f"{UNET}.safetensors").unlink(), "no diffusion_pytorch_model"),
        (put("base/text_encoder/adapter_config.json", "{}"), "no export writes this file"),
        (put("base/unet/diffusion_pytorch_model.fp16.safetensors", ""), "no export writes"),
        (put("base/tokenizer/tokenization_own.py", ""), "no export writes this file"),
        (put(INDEX, '{"weight_map": {}}'), "both diffusion_pytorch_model.safetensors and"),
        (index({"a": "x.bin"}), "a shard at 'x.bin'"),
        (index({"a": "../vae/x.safetensors"}), "a shard at '../vae/x.safetensors'"),
        (index({"a": 5}), "a shard at '5'"),
        (index({"a": "x.safetensors"}), "no x.safetensors"),
        (index({}), "it names no shards"),
        (index([]), "it names no shards"),
        (put("base/unet/config.json", '{"auto_map": {"AutoModel": "own.Model"}}'), "auto_map"),
        (put("base/vae/config.json", '{"_class_name": ["own", "Model"]}'), "_class_name"),
        (put("base/vae/config.json", "[]"), "JSON of type list"),
        (put("base/scheduler/scheduler_config.json", "{"), "cannot be read"),
        (link_a_folder, "vae is a link to"),
    ],
)
def test_refused(folder: Path, change: Callable[[Path], None], words: str) -> None:
    change(folder)
    with pytest.raises(ConfigurationError) as caught:
        check(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "library", "class_name"),
    [
        ("unet", "diffusers", "UNet2DModel"),
        ("unet", "transformers", "UNet2DConditionModel"),
        ("vae", "diffusers", "utils"),
        ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler"),
        ("text_encoder", "transformers", "pipeline"),
        ("tokenizer", "transformers", "AutoTokenizer"),
    ],
)
def test_only_known_classes(folder: Path, name: str, library: str, class_name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"has {library}.{class_name}, and what may be"):
        check(folder, pipeline(**{name: (library, class_name)}))


def test_other_components_and_missing_ones(folder: Path) -> None:
    whole = pipeline()
    unknown = {**whole.components, "safety_checker": whole.components["vae"]}
    with pytest.raises(ConfigurationError, match=r"safety_checker: the manifest has"):
        check(folder, whole.model_copy(update={"components": unknown}))
    without = {name: part for name, part in whole.components.items() if name != "vae"}
    with pytest.raises(ConfigurationError, match="the manifest has no component vae"):
        check(folder, whole.model_copy(update={"components": without}))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "it ran")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_pickle_in_place_of_the_weights_is_not_opened(
    folder: Path, tmp_path: Path, component: str
) -> None:
    manifest(base=pipeline(), refiner=None).save(folder)
    stem = KINDS[component].stem
    name = "pytorch_model.bin" if component == "text_encoder" else f"{stem}.bin"
    (folder / "base" / component / f"{stem}.safetensors").unlink()
    (folder / "base" / component / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(ConfigurationError, match="a pickle, which can run code"):
        Model.load("m", "m:1", folder, CPU)
    assert not (tmp_path / "ran").exists()
