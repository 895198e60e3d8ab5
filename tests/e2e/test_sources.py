"""`python -m export` from each kind of source, as a user runs it, up to the pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.embedded import WEIGHTS
from sdxl_bento.manifest import Manifest
from tests.support import checkpoints
from tests.support.files import FileServer
from tests.support.s3 import Bucket, s3_server

ROOT = Path(__file__).resolve().parents[2]
EXPORT = [sys.executable, "-m", "export"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No variable that names a source, and no network but loopback."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("AWS", "S3"))}
    mine.pop("STORAGE_URI", None)
    mine.pop("MODEL_ID", None)
    return mine | {
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "SDXL_EXPORT_CACHE": str(tmp_path / "cache"),
        "SDXL_EXPORT_MODEL_MOUNT": str(tmp_path / "mnt-models"),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "*",
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base model in one file."""
    path = tmp_path_factory.mktemp("checkpoint") / "fine-tune.safetensors"
    return checkpoints.write(path, checkpoints.base())


def export(environment: dict[str, str], *arguments: str) -> Any:
    return subprocess.run(
        [*EXPORT, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def exported(environment: dict[str, str], *arguments: str) -> tuple[Path, Manifest]:
    """Folder and manifest of a model that must have been exported."""
    done = export(environment, *arguments)
    assert done.returncode == 0, done.stderr
    name, _, version = done.stdout.strip().partition(":")
    folder = Path(environment["BENTOML_HOME"]) / "models" / name / version
    return folder, Manifest.load(folder)


def picture(folder: Path) -> Any:
    """What diffusers draws with the base model in `folder`, as numbers 0 to 255."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    load: Any = StableDiffusionXLPipeline.from_pretrained
    pipeline = load(folder / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a red circle on a blue background", num_inference_steps=8, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    return np.asarray(drawn.images[0]).astype(int)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, as in tests/parity
def test_a_checkpoint_draws_what_its_folder_draws(
    environment: dict[str, str], checkpoint: Path, model_store: Path, embedded_tag: str
) -> None:
    folder, manifest = exported(environment, str(checkpoint))
    assert (manifest.name, manifest.source.kind) == ("fine-tune", "file")
    assert (manifest.source.location, manifest.variant) == ("fine-tune.safetensors", "base")
    assert manifest.latent_rgb is not None  # its VAE is not SDXL's
    assert str(checkpoint.parent) not in (folder / "manifest.json").read_text()
    name, _, version = embedded_tag.partition(":")
    expected = picture(model_store / "models" / name / version)
    assert expected.std() > 10  # a picture, not one colour
    assert abs(picture(folder) - expected).max() <= 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, Bucket]]:
    with s3_server() as url:
        yield url, Bucket.empty(url, "models")


def test_a_folder_in_s3_that_the_environment_names(
    environment: dict[str, str], bucket: tuple[str, Bucket]
) -> None:
    """As KServe's users set it: a host without a scheme, and keys for boto."""
    url, store = bucket
    store.put_folder("teams/sdxl", WEIGHTS / "base")
    environment |= {
        "STORAGE_URI": "s3://models/teams/sdxl",
        "S3_ENDPOINT": url.removeprefix("http://"),
        "S3_USE_HTTPS": "0",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "verysecret",
    }
    folder, manifest = exported(environment)
    assert (manifest.name, manifest.source.kind) == ("sdxl", "object")
    assert manifest.source.location == "s3://models/teams/sdxl"
    for path in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert (folder / "base" / path).read_bytes() == (WEIGHTS / "base" / path).read_bytes()
    everything = b"".join(
        path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".safetensors"
    )
    assert b"verysecret" not in everything


def test_killed_half_way_and_run_again(environment: dict[str, str], checkpoint: Path) -> None:
    """The bytes that came before the kill are not fetched again, and no model is left half."""
    content = checkpoint.read_bytes()
    with FileServer(content).running() as server:
        server.bytes_per_s = 2e6
        url = f"{server.url.replace('http://', 'http://me:verysecret@')}/x.safetensors?token=verysecret"
        process = subprocess.Popen(
            [*EXPORT, url], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        cache = Path(environment["SDXL_EXPORT_CACHE"])
        deadline = time.monotonic() + 120
        while sum(path.stat().st_size for path in cache.rglob("*.part")) < 1_000_000:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not list((Path(environment["BENTOML_HOME"]) / "models").rglob("*"))
        (part,) = cache.rglob("*.part")
        have = part.stat().st_size
        assert part.read_bytes() == content[:have]
        server.bytes_per_s = 0
        done = export(environment, url)
        assert done.returncode == 0, done.stderr
        assert any(asked.get("range") == f"bytes={have}-" for asked in server.asked)
        name, _, version = done.stdout.strip().partition(":")
        folder = Path(environment["BENTOML_HOME"]) / "models" / name / version
        manifest = Manifest.load(folder)
        assert (manifest.source.kind, manifest.source.revision) == ("url", server.etag)
        assert manifest.source.location == f"{server.url}/x.safetensors"
        assert "verysecret" not in done.stderr + (folder / "manifest.json").read_text()
        assert "MB" in done.stderr  # how far it is
