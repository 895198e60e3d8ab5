"""`python -m export` as its user runs it, and what is left when it is stopped half way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from export.embedded import WEIGHTS
from sdxl_bento.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
EXPORT = [sys.executable, "-m", "export"]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


def export(home: Path, *arguments: str) -> Any:
    return subprocess.run(
        [*EXPORT, *arguments],
        cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def models(home: Path) -> str:
    """What `bentoml models list` prints; it fails if the store holds a half-written model."""
    done = subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "models", "list", "-o", "json"],
        cwd=ROOT, env=environment(home), capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def folder_of(home: Path, tag: str) -> Path:
    name, _, version = tag.partition(":")
    return home / "models" / name / version


def test_bentoml_lists_it(model_store: Path, embedded_tag: str) -> None:
    assert embedded_tag.startswith("sdxl-embedded:")
    assert embedded_tag in models(model_store)


def test_what_it_wrote(model_store: Path, embedded_tag: str) -> None:
    folder = folder_of(model_store, embedded_tag)
    manifest = Manifest.load(folder)
    assert (manifest.source.kind, manifest.source.location) == ("embedded", "embedded")
    assert manifest.refiner is not None
    assert {lora.name for lora in manifest.loras} == {"striped", "outlined"}
    assert manifest.size_limits.allows(manifest.base.width, manifest.base.height)
    top = {path.name for path in folder.iterdir()} - {"profiles"}  # a server may have measured
    assert top == {"model.yaml", "manifest.json", "base", "refiner", "loras"}
    assert str(WEIGHTS.parents[1]) not in (folder / "manifest.json").read_text()


def test_again_is_quick_and_says_so(model_store: Path, embedded_tag: str) -> None:
    again = export(model_store, "embedded")
    assert again.returncode == 0
    assert again.stdout.strip() == embedded_tag
    assert "the same content already" in again.stderr
    brief = export(model_store, "embedded", "--brief")
    assert (brief.returncode, brief.stdout) == (0, "")


def test_nothing_heavy_is_imported_when_there_is_nothing_to_do(
    model_store: Path, embedded_tag: str
) -> None:
    script = (
        "import sys\nfrom export.job import Options, run\n"
        "assert not run(Options('embedded')).created\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(model_store), check=True,
        capture_output=True,
    )  # fmt: skip


def test_refused_source(tmp_path: Path) -> None:
    done = export(tmp_path, "/no/such/folder")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Not exported" in done.stderr
    assert "found:" in done.stderr
    assert "needed:" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_reach_the_model(tmp_path: Path) -> None:
    lora = WEIGHTS / "loras" / "striped.safetensors"
    done = export(
        tmp_path, str(WEIGHTS / "base"), "--refiner", str(WEIGHTS / "refiner"),
        "--lora", str(lora), "--name", "mine", "--dtype", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tag = done.stdout.strip()
    assert tag.startswith("mine:")
    assert f"SDXL_MODEL={tag} bentoml serve" in done.stderr
    manifest = Manifest.load(folder_of(tmp_path, tag))
    assert (manifest.name, manifest.dtype) == ("mine", "fp32")
    assert manifest.refiner is not None
    assert [entry.name for entry in manifest.loras] == ["striped"]


def hear_interrupts() -> None:
    """A shell's background job, as CI may be, ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Interrupted:
    """A running export, to be stopped once its stderr or its staging folder shows a stage."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [*EXPORT, "embedded"],
            cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=hear_interrupts,
        )  # fmt: skip

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + 120
        while not list(self.home.glob(pattern)):
            assert self.process.poll() is None, f"it ended before {pattern} was there"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


STAGING = "tmp/sdxl-export-*"
WRITING = "tmp/sdxl-export-*/model/base/unet"
WRITTEN = "tmp/sdxl-export-*/model/refiner/vae/*.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, STAGING),
        (signal.SIGINT, WRITING),
        (signal.SIGTERM, WRITING),
        (signal.SIGKILL, STAGING),
        (signal.SIGKILL, WRITING),
        (signal.SIGKILL, WRITTEN),
    ],
)
def test_stopped_half_way(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    run = Interrupted(tmp_path)
    run.wait_for(moment)
    code = run.stop(number)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert models(tmp_path).strip() == "[]"
    leftovers = list(tmp_path.glob("tmp/sdxl-export-*"))
    if number == signal.SIGKILL:  # nothing can tidy up after that but the next export
        assert leftovers
        script = "from export.store import staging\nwith staging(): pass"
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment(tmp_path), check=True
        )
        leftovers = list(tmp_path.glob("tmp/sdxl-export-*"))
    assert not leftovers
