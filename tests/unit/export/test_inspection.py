"""Sound models are read; every other kind is refused by an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.embedded import WEIGHTS
from export.errors import NotSDXLError, SourceError, UnsafeSourceError
from export.model.inspection import Folder, read_pipeline, slug

UNET = "unet/diffusion_pytorch_model.safetensors"


def read(copy: Any, role: Any = "base", dtype: Any = None) -> Any:
    return read_pipeline(Folder(copy.path), role, dtype)


def test_base_is_read(base: Any) -> None:
    pipeline = read(base)
    assert set(pipeline.components) == {
        "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
    }  # fmt: skip
    assert pipeline.dtype == "fp16"
    geometry = pipeline.geometry
    assert (geometry.width, geometry.vae_scale_factor, geometry.multiple) == (128, 8, 32)
    assert pipeline.flags == {"force_zeros_for_empty_prompt": True}


def test_refiner_is_read(refiner: Any) -> None:
    pipeline = read(refiner, "refiner")
    assert "text_encoder" not in pipeline.components
    assert pipeline.flags == {
        "force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True,
    }  # fmt: skip


def test_unknown_files_are_left_behind(base: Any) -> None:
    base.write("unet/notes.py", b"raise SystemExit")
    base.write("extra/code.py", b"raise SystemExit")
    base.write("unet/pytorch_model.bin", b"pickle")
    assert not [name for name in read(base).files() if name.endswith((".py", ".bin"))]


def drop(*names: str) -> Any:
    def change(copy: Any) -> None:
        for name in names:
            (copy.path / name).unlink()

    return change


def put(name: str, **values: Any) -> Any:
    return lambda copy: copy.set(name, **values)


INDEX, CONFIG = "model_index.json", "unet/config.json"

REFUSED = {
    "no index": (drop(INDEX), SourceError, "the model_index.json that belongs to them"),
    "broken index": (lambda c: c.write(INDEX, b"{"), SourceError, "broken JSON"),
    "index is a list": (lambda c: c.write(INDEX, b"[]"), SourceError, "type list"),
    "binary index": (lambda c: c.write(INDEX, b"\xff\xfe\x00"), SourceError, "broken JSON"),
    "deep index": (lambda c: c.write(INDEX, b"[" * 200_000), SourceError, "broken JSON"),
    "another pipeline": (
        put(INDEX, _class_name="StableDiffusionPipeline"), NotSDXLError, "StableDiffusionXL",
    ),
    "own pipeline class": (
        put(INDEX, _class_name=["pipeline", "MyPipeline"]), UnsafeSourceError, "of the model's own",
    ),
    "custom_pipeline": (put(INDEX, custom_pipeline="x/y"), UnsafeSourceError, "loads code"),
    "component in own code": (
        put(INDEX, unet=["my_unet", "UNet"]), UnsafeSourceError, "from 'my_unet'",
    ),
    "ignored component in own code": (
        put(INDEX, safety_checker=["my_checker", "Checker"]), UnsafeSourceError, "my_checker",
    ),
    "class off the list": (
        put(INDEX, unet=["diffusers", "UNet3D"]), NotSDXLError, "UNet2DCondition",
    ),
    "component off the list": (
        put(INDEX, transformer=["diffusers", "SD3Transformer2DModel"]), NotSDXLError, "transformer",
    ),
    "malformed entry": (put(INDEX, unet=["diffusers", 1]), SourceError, "[library, class]"),
    "no vae": (put(INDEX, vae=[None, None]), SourceError, "no component vae"),
    "flag is no flag": (
        put(INDEX, force_zeros_for_empty_prompt="yes"), SourceError, "true or false",
    ),
    "auto_map": (
        put("text_encoder/config.json", auto_map={"A": "m.M"}), UnsafeSourceError, "auto",
    ),
    "auto_map of a tokenizer": (
        put("tokenizer/tokenizer_config.json", auto_map={"A": "t.T"}), UnsafeSourceError, "auto",
    ),
    "no unet config": (drop(CONFIG), SourceError, "config.json"),
    "no unet weights": (drop(UNET), SourceError, "diffusion_pytorch_model.safetensors"),
    "no tokenizer files": (
        drop("tokenizer/vocab.json", "tokenizer/tokenizer.json"), SourceError, "merges.txt",
    ),
    "no text_time": (put(CONFIG, addition_embed_type=None), NotSDXLError, "text_time"),
    "inpainting unet": (put(CONFIG, in_channels=9), NotSDXLError, "in_channels"),
    "full LCM unet": (put(CONFIG, time_cond_proj_dim=256), NotSDXLError, "LCM LoRA"),
    "class embedding": (put(CONFIG, class_embed_type="timestep"), NotSDXLError, "class_embed_type"),
    "cross attention": (put(CONFIG, cross_attention_dim=2048), NotSDXLError, "128"),
    "projection": (
        put(CONFIG, projection_class_embeddings_input_dim=99), NotSDXLError, "6 time ids",
    ),
    "no channel counts": (put(CONFIG, block_out_channels=None), SourceError, "channel counts"),
    "no sample size": (put(CONFIG, sample_size=None), SourceError, "sample_size"),
    "hidden size is text": (
        put("text_encoder/config.json", hidden_size="64"), SourceError, "hidden_size",
    ),
    "16 latent channels": (put("vae/config.json", latent_channels=16), NotSDXLError, "16 latent"),
    "flow prediction": (
        put("scheduler/scheduler_config.json", prediction_type="flow"), NotSDXLError, "epsilon",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(base: Any, case: str) -> None:
    change, error, words = REFUSED[case]
    change(base)
    with pytest.raises(SourceError) as caught:
        read(base)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert caught.value.found
    assert caught.value.needed


def test_roles_are_not_mixed_up(base: Any, refiner: Any) -> None:
    with pytest.raises(NotSDXLError, match="--refiner"):
        read(refiner, "base")
    with pytest.raises(NotSDXLError, match="a base model"):
        read(base, "refiner")


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ((), SourceError, "an empty folder"),
        (("readme.txt",), SourceError, "diffusers' layout"),
        (("a.safetensors", "b.safetensors"), SourceError, r"one of them, as .*/a\.safetensors"),
        (("a.ckpt", "readme.txt"), UnsafeSourceError, r"a\.ckpt(?s:.)*a pickled checkpoint"),
    ],
)
def test_folders_that_are_no_pipeline(
    tmp_path: Path, names: tuple[str, ...], error: type[SourceError], words: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(error, match=words):
        read_pipeline(Folder(tmp_path), "base", None)


def test_weights_as_wrappers_name_them(base: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(base.path / UNET)
    (base.path / UNET).unlink()
    save_file({f"_orig_mod.{name}": each for name, each in tensors.items()}, base.path / UNET)
    with pytest.raises(SourceError, match=r"_orig_mod\.', as torch\.compile"):
        read(base)


def test_pickles_only(base: Any) -> None:
    base.move(UNET, "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeSourceError, match=r"diffusion_pytorch_model\.bin.*run code"):
        read(base)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_weights(base: Any, keep: int) -> None:
    base.write(UNET, (base.path / UNET).read_bytes()[:keep])
    with pytest.raises(SourceError, match="broken safetensors"):
        read(base)


def test_absurd_header_length(base: Any) -> None:
    base.write(UNET, (2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(SourceError, match="broken safetensors"):
        read(base)


@pytest.mark.parametrize("name", [UNET, CONFIG, "tokenizer/vocab.json", INDEX])
def test_links_that_lead_out(base: Any, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((base.path / name).read_bytes())
    (base.path / name).unlink()
    (base.path / name).symlink_to(outside)
    with pytest.raises(UnsafeSourceError, match="a link to"):
        read(base)


def test_a_folder_that_is_a_link_out(base: Any, tmp_path: Path) -> None:
    base.move("unet", "../elsewhere")
    (base.path / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeSourceError, match="a link to"):
        read(base)


def test_links_inside_are_followed(base: Any) -> None:
    base.move(UNET, "unet/real.safetensors")
    (base.path / UNET).symlink_to("real.safetensors")
    assert read(base).dtype == "fp16"


class TestShards:
    def split(self, base: Any, names: tuple[str, str] = ("a", "b")) -> None:
        """Cut the UNet into two shards."""
        from safetensors.numpy import load_file, save_file

        tensors = load_file(base.path / UNET)
        (base.path / UNET).unlink()
        where = {}
        for part, name in enumerate(names):
            keys = list(tensors)[part::2]
            save_file({key: tensors[key] for key in keys}, base.path / "unet" / name)
            where |= dict.fromkeys(keys, name)
        self.index(base, where)

    def index(self, base: Any, where: dict[str, str]) -> None:
        content = {"metadata": {"total_size": 1}, "weight_map": where}
        base.write(f"{UNET}.index.json", json.dumps(content).encode())

    def test_read(self, base: Any) -> None:
        names = tuple(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
        self.split(base, names)  # type: ignore[arg-type]
        unet = read(base).components["unet"]
        assert {*names, "diffusion_pytorch_model.safetensors.index.json"} < set(unet.files)
        assert unet.dtype == "fp16"

    @pytest.mark.parametrize("name", ["../vae/x.safetensors", "/etc/passwd", "..", "a/b", ""])
    def test_outside(self, base: Any, name: str) -> None:
        (base.path / UNET).unlink()
        self.index(base, {"conv_in.weight": name})
        with pytest.raises(UnsafeSourceError, match="beside their index"):
            read(base)

    def test_pickled_shard(self, base: Any) -> None:
        (base.path / UNET).unlink()
        self.index(base, {"conv_in.weight": "a.bin"})
        with pytest.raises(UnsafeSourceError, match="safetensors shards"):
            read(base)

    def test_missing_shard(self, base: Any) -> None:
        (base.path / UNET).unlink()
        self.index(base, {"conv_in.weight": "a.safetensors"})
        with pytest.raises(SourceError, match="no such file"):
            read(base)

    @pytest.mark.parametrize("data", [b"{", b"{}", b'{"weight_map": {}}', b'{"weight_map": [1]}'])
    def test_broken_index(self, base: Any, data: bytes) -> None:
        (base.path / UNET).unlink()
        base.write(f"{UNET}.index.json", data)
        with pytest.raises(SourceError, match="index"):
            read(base)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
CONFIGS = [
    INDEX, CONFIG, "vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json",
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
]  # fmt: skip
KEYS = {name: sorted(json.loads((WEIGHTS / "base" / name).read_text())) for name in CONFIGS}


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_anywhere_is_read_or_refused(base: Any, data: Any) -> None:
    """Never another exception than `SourceError`, whatever a config says."""
    name = data.draw(st.sampled_from(CONFIGS))
    key = data.draw(st.sampled_from(KEYS[name]) | st.text(max_size=8))
    original = (base.path / name).read_bytes()
    try:
        base.set(name, **{key: data.draw(JSON)})
        read(base)
    except SourceError as error:
        assert error.needed
    finally:
        base.write(name, original)


@pytest.mark.parametrize(
    ("text", "name"),
    [("SDXL Base", "sdxl-base"), ("a_b.c-1", "a_b.c-1"), ("--x--", "x"), ("Ünet", "net")],
)
def test_slug(text: str, name: str) -> None:
    assert slug(text) == name


def test_slug_of_nothing() -> None:
    with pytest.raises(SourceError, match="--name"):
        slug("***")
