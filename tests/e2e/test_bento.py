"""A built bento, moved to a place that has nothing else: it brings its model along."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import httpx
import pytest
import yaml
from bentoml._internal.models import ModelStore
from bentoml.models import create

from export.embedded.checker import analyse
from tests.e2e.conftest import REAL
from tests.e2e.test_service import RED, opened
from tests.support.packing import bentoml, build
from tests.support.server import serve


@pytest.fixture(scope="module")
def archive(embedded_tag: str, model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bento") / "exported.bento"
    bentoml("export", build(home=model_store), str(path), home=model_store)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("packed", ["imported", "folder"])
def test_a_bento_serves_alone(archive: Path, tmp_path: Path, packed: str) -> None:
    """`imported`: into an empty store; `folder`: unpacked, as in a container."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if packed == "imported":
        bentoml("import", str(archive), home=home, cwd=elsewhere)
        target = "sdxl-bento:latest"
    else:
        home.mkdir()
        target = str(unpack(archive, elsewhere / "bento"))
    env = REAL | {"BENTOML_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with serve(target, tmp_path / "log", env=env, cwd=elsewhere) as server:
        answer = httpx.post(f"{server.url}/generate", json=RED, timeout=120)
        assert answer.status_code == 200, answer.text
        found = analyse(opened(answer.content))
        assert (found.colour, found.shape, found.background) == ("red", "circle", "blue")
        assert httpx.get(f"{server.url}/").status_code == 200


def test_a_model_laid_beside_the_packed_one_is_served(archive: Path, tmp_path: Path) -> None:
    """What a volume does in a container; BentoML itself insists on the packed one too."""
    bento = unpack(archive, tmp_path / "bento")
    (packed,) = bento.glob("models/sdxl-embedded/*/model.yaml")
    mounted = bento / "models" / "mounted"
    shutil.copytree(packed.parent, mounted / "v1")
    (mounted / "latest").write_text("v1")
    described = yaml.safe_load((mounted / "v1" / "model.yaml").read_text())
    described |= {"name": "mounted", "version": "v1"}
    (mounted / "v1" / "model.yaml").write_text(yaml.safe_dump(described))
    env = REAL | {"BENTOML_HOME": str(tmp_path), "SDXL_MODEL": "mounted:latest"}
    with serve(str(bento), tmp_path / "log", env=env, cwd=tmp_path) as server:
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert model["tag"] == "mounted:v1"


def test_all_files_of_the_model_go_along(tmp_path: Path) -> None:
    """Compiled parts lie in folders of the model that the packer knows nothing of."""
    home, path = tmp_path / "home", tmp_path / "exported.bento"
    (home / "models").mkdir(parents=True)
    with create("stub:1", _model_store=ModelStore(home / "models")) as model:
        for name in ("compiled/cpu/unet.pt2", "compiled/cpu/.cache/engine", "lora/a/b.safetensors"):
            file = Path(model.path) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
    tag = build(home=home, SDXL_MODEL="stub:1")
    bentoml("export", tag, str(path), home=home)

    def files(folder: Path) -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    packed = files(unpack(path, tmp_path / "bento") / "models" / "stub" / "1")
    assert packed == files(home / "models" / "stub" / "1")
    assert packed["compiled/cpu/unet.pt2"] == b"compiled/cpu/unet.pt2"
