"""Whole exports within one process: what is written, in which dtype, and what is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from export import job
from export import store as bento
from export.check import eager
from export.embedded import WEIGHTS
from export.errors import ExportError, SourceError, VerificationError
from export.job import Options
from export.model import weights
from export.progress import Progress
from sdxl_bento.manifest import PROFILES, Manifest

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "store" / "models").mkdir(parents=True)
    monkeypatch.setattr(bento, "store", lambda: tmp_path / "store" / "models")
    return tmp_path / "store"


def run(home: Path, source: Any, **options: Any) -> tuple[Path, Manifest]:
    result = job.run(Options(str(source), **options), Progress(Console(quiet=True)))
    name, _, version = result.tag.partition(":")
    folder = home / "models" / name / version
    return folder, Manifest.load(folder)


def empty(home: Path) -> bool:
    tmp = home / "tmp"
    return not list((home / "models").rglob("*")) and not list(tmp.glob("sdxl-export-*"))


def test_unchanged_bytes(home: Path, base: Any) -> None:
    folder, manifest = run(home, base.path)
    assert (manifest.name, manifest.dtype, manifest.refiner) == ("base", "fp16", None)
    assert (manifest.source.kind, manifest.source.location) == ("folder", "base")
    assert (folder / "base" / UNET).read_bytes() == (base.path / UNET).read_bytes()
    assert manifest.bytes == bento.content_bytes(folder)
    figures = {figure.part: figure for figure in manifest.backends[0].parity}
    assert set(figures) == {f"base/{part}" for part in eager.PARTS}
    assert all(figure.max_abs_error == 0 for figure in figures.values())
    assert str(base.path.parent) not in (folder / "manifest.json").read_text()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_conversion(home: Path, base: Any, refiner: Any, dtype: Any) -> None:
    folder, manifest = run(home, base.path, refiner=str(refiner.path), dtype=dtype)
    assert manifest.dtype == dtype
    for path in folder.rglob("*.safetensors"):
        assert weights.inspect(path)[0] == dtype
    figures = {figure.part: figure for figure in manifest.backends[0].parity}
    assert len(figures) == 7
    if dtype == "fp32":  # every fp16 number is an fp32 number
        assert all(figure.max_abs_error == 0 for figure in figures.values())
    else:
        assert figures["base/unet"].max_abs_error > 0
        assert min(figure.psnr_db or 99 for figure in figures.values()) > eager.LEAST_PSNR_DB
    config = (folder / "base" / "text_encoder" / "config.json").read_text()
    assert {"bf16": "bfloat16", "fp32": "float32"}[dtype] in config


def test_same_pictures_from_plain_diffusers(home: Path, base: Any, refiner: Any) -> None:
    """What was written is a pipeline folder in its own right."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    folder, _ = run(home, base.path, refiner=str(refiner.path))
    first = StableDiffusionXLPipeline.from_pretrained(folder / "base")
    second = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder / "refiner")
    assert first.unet.config.addition_embed_type == "text_time"
    assert second.config.requires_aesthetics_score is True
    assert second.text_encoder is None


def test_variants_and_shards_get_plain_names(home: Path, base: Any) -> None:
    base.move(UNET, "unet/diffusion_pytorch_model.fp16.safetensors")
    tensors = load_file(base.path / "vae" / "diffusion_pytorch_model.safetensors")
    (base.path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {}
    for part, name in enumerate(names):
        keys = list(tensors)[part::2]
        save_file({key: tensors[key] for key in keys}, base.path / "vae" / name)
        where |= dict.fromkeys(keys, name)
    index = "vae/diffusion_pytorch_model.safetensors.index.json"
    base.write(index, b"{}")
    base.set(index, weight_map=where, metadata={"total_size": 1})
    folder, manifest = run(home, base.path, dtype="fp32")
    assert (folder / "base" / UNET).is_file()
    size = sum((folder / "base" / "vae" / name).stat().st_size for name in names)
    assert f'"total_size": {size}' in (folder / "base" / index).read_text()
    assert manifest.backends[0].parity[-1].max_abs_error == 0


def test_unchanged_content_is_not_exported_twice(home: Path, base: Any) -> None:
    quiet = Progress(Console(quiet=True))
    first = job.run(Options(str(base.path)), quiet)
    assert first.created
    assert job.run(Options(str(base.path)), quiet) == job.Result(first.tag, created=False)
    profiles = home / "models" / first.tag.replace(":", "/") / PROFILES
    profiles.mkdir()  # as the service does when it has warmed up
    (profiles / "cpu-float32.json").write_text("[]")
    assert job.run(Options(str(base.path)), quiet) == job.Result(first.tag, created=False)
    assert job.run(Options(str(base.path), force=True), quiet).created
    assert job.run(Options(str(base.path), dtype="bf16"), quiet).created
    # A flag of the pipeline is content too, though model_index.json is not copied.
    base.set("model_index.json", force_zeros_for_empty_prompt=False)
    assert job.run(Options(str(base.path)), quiet).created


def test_the_wanted_dtype_is_content_where_it_changes_a_component(home: Path, base: Any) -> None:
    """The UNet is fp16 already, the VAE is not: "as it is" and fp16 are two models."""
    vae = "vae/diffusion_pytorch_model.safetensors"
    weights.convert(base.path / vae, base.path / "vae" / "wide", "fp32")
    base.write(vae, (base.path / "vae" / "wide").read_bytes())
    quiet = Progress(Console(quiet=True))
    assert job.run(Options(str(base.path)), quiet).created
    result = job.run(Options(str(base.path), dtype="fp16"), quiet)
    assert result.created
    folder = home / "models" / result.tag.replace(":", "/")
    assert weights.inspect(folder / "base" / vae)[0] == "fp16"


def test_missing_weight(home: Path, base: Any) -> None:
    tensors = load_file(base.path / UNET)
    del tensors["conv_in.weight"]
    (base.path / UNET).unlink()
    save_file(tensors, base.path / UNET)
    with pytest.raises(SourceError, match=r"conv_in\.weight"):
        run(home, base.path)
    assert empty(home)


def test_misshapen_weight(home: Path, base: Any) -> None:
    tensors = load_file(base.path / UNET)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2].copy()
    (base.path / UNET).unlink()
    save_file(tensors, base.path / UNET)
    with pytest.raises(SourceError, match=r"unet(?s:.)*weights that fit"):
        run(home, base.path)
    assert empty(home)


def test_weights_that_are_not_finite(home: Path, base: Any) -> None:
    tensors = load_file(base.path / UNET)
    tensors["conv_out.bias"][:] = float("nan")
    (base.path / UNET).unlink()
    save_file(tensors, base.path / UNET)
    with pytest.raises(VerificationError, match="base/unet: its output is not finite"):
        run(home, base.path)
    assert empty(home)


def test_a_conversion_that_loses_too_much(
    home: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "LEAST_PSNR_DB", 200.0)
    with pytest.raises(VerificationError, match="wider --dtype"):
        run(home, base.path, dtype="bf16")
    assert empty(home)


def test_base_and_refiner_must_share_a_latent_space(home: Path, base: Any, refiner: Any) -> None:
    refiner.edit("vae/config.json", lambda config: config["block_out_channels"].append(64))
    with pytest.raises(ExportError, match="vae_scale_factor: 8 and"):
        run(home, base.path, refiner=str(refiner.path))


def test_sizes_are_limited_to_a_quarter_and_twice_of_the_native_one(home: Path, base: Any) -> None:
    limits = run(home, base.path)[1].size_limits
    assert (limits.min, limits.max) == (64, 256)  # the API's least side; the native one is 128
    assert limits.allows(256, 64)
    assert not limits.allows(256 + limits.multiple, 128)


def test_full_disk(home: Path, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shutil import _ntuple_diskusage  # type: ignore[attr-defined]

    monkeypatch.setattr("shutil.disk_usage", lambda _: _ntuple_diskusage(10, 10, 0))
    with pytest.raises(ExportError, match=r"0\.0 GB free"):
        run(home, base.path)
    assert empty(home)


class TestLoras:
    def test_written(self, home: Path, base: Any) -> None:
        lora = WEIGHTS / "loras" / "striped.safetensors"
        folder, manifest = run(home, base.path, loras=(lora,))
        assert [entry.name for entry in manifest.loras] == ["striped"]
        assert (folder / manifest.loras[0].path).read_bytes() == lora.read_bytes()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("none.safetensors", "no such file"),
            ("a.pt", "a .pt file"),
            ("b.safetensors", "short"),
        ],
    )
    def test_refused(self, home: Path, base: Any, tmp_path: Path, name: str, words: str) -> None:
        if not name.startswith("none"):
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(SourceError, match=words):
            run(home, base.path, loras=(tmp_path / name,))

    def test_not_a_lora(self, home: Path, base: Any) -> None:
        with pytest.raises(SourceError, match="not tensors of a LoRA"):
            run(home, base.path, loras=(base.path / UNET,))

    def test_notes_and_the_users_word(
        self, home: Path, base: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Printed, written into the manifest; the written config is what the user has said."""
        base.set("scheduler/scheduler_config.json", _class_name="PNDMScheduler")
        base.edit("model_index.json", lambda c: c.update(scheduler=["diffusers", "PNDMScheduler"]))
        vpred = base.path.with_name("some-vpred")
        base.path.rename(vpred)
        said: list[str] = []
        monkeypatch.setattr(Progress, "say", lambda _, text: said.append(text))
        folder, manifest = run(home, vpred)
        assert "PNDMScheduler is no sampler here" in manifest.notes[0]
        assert "suggests v-prediction" in manifest.notes[1]
        assert [text for text in said if text.startswith("Note: ")] == [
            f"Note: {note}" for note in manifest.notes
        ]
        path = "scheduler/scheduler_config.json"
        assert (folder / "base" / path).read_bytes() == (vpred / path).read_bytes()
        changed, other = run(home, vpred, prediction="v_prediction")
        assert other.base.prediction_type == "v_prediction"
        assert len(other.notes) == 1
        assert '"prediction_type": "v_prediction"' in (changed / "base" / path).read_text()

    def test_same_name_twice(self, home: Path, base: Any) -> None:
        lora = WEIGHTS / "loras" / "striped.safetensors"
        with pytest.raises(SourceError, match="a second LoRA"):
            run(home, base.path, loras=(lora, lora))
