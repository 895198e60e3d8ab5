"""What a LoRA file may be, and how it is refused where it is not that."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdxl_bento.diffusion.lora.files import Adapter, read_adapter
from sdxl_bento.diffusion.lora.fitting import Modules
from sdxl_bento.errors import AdapterMismatch, AdapterNotFound
from tests.support import loras
from tests.support.loras import CLIP, CONVOLUTIONS, EVERYTHING

Targets = dict[str, nn.Module]
EMBEDDED = Path(__file__).parents[3] / "export" / "embedded" / "weights"


@pytest.fixture(scope="module")
def targets() -> Targets:
    return loras.tiny_targets()


def read(path: Path, targets: Targets) -> Adapter:
    return read_adapter("a", path, {name: Modules(module) for name, module in targets.items()})


def refused(path: Path, targets: Targets) -> AdapterMismatch:
    with pytest.raises(AdapterMismatch) as caught:
        read(path, targets)
    return caught.value


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_layers_dtype_and_size(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, clip=CLIP)
    half = {key: tensor.half() for key, tensor in tensors.items()}
    adapter = read(loras.write_peft(tmp_path / "a.safetensors", half), targets)
    assert set(adapter.layers) == set(targets)
    assert sum(len(layers) for layers in adapter.layers.values()) == len(tensors) // 2
    # The layers' own type, not the file's.
    assert {layer.up.dtype for layer in adapter.layers["unet"].values()} == {torch.float32}
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("alpha_of_q", [1.0, 8.0])
def test_alpha_belongs_to_its_layer(targets: Targets, tmp_path: Path, alpha_of_q: float) -> None:
    # diffusers takes the most common alpha for all attention layers of a kohya file.
    kohya = loras.to_kohya(loras.factors(targets), alpha=2.0)
    one = next(key for key in kohya if key.endswith("attn1_to_q.alpha"))
    kohya[one] = torch.tensor(alpha_of_q)
    del kohya[one.replace("to_q", "to_k")]  # none at all: alpha = rank
    layers = read(saved(tmp_path / "a.safetensors", kohya), targets).layers["unet"]
    stem = one.removesuffix("_to_q.alpha")
    for which, scaling in (("q", alpha_of_q / 4), ("k", 1.0), ("v", 0.5)):
        up = kohya[f"{stem}_to_{which}.lora_up.weight"]
        name = next(n for n in layers if n.replace(".", "_") == f"{stem[10:]}_to_{which}")
        assert torch.allclose(layers[name].up, up * scaling)


def test_a_1x1_convolution_may_stand_for_a_linear_layer(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets)
    as_conv = {key: tensor[:, :, None, None] for key, tensor in tensors.items()}
    flat = read(loras.write_peft(tmp_path / "flat.safetensors", tensors), targets)
    conv = read(loras.write_peft(tmp_path / "conv.safetensors", as_conv), targets)
    for name, layer in flat.layers["unet"].items():
        assert torch.equal(conv.layers["unet"][name].down, layer.down)
        assert torch.equal(conv.layers["unet"][name].up, layer.up)


def test_clip_layers_with_and_without_text_model(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, unet="", clip=CLIP)
    bare = {key.replace("text_model.", ""): tensor for key, tensor in tensors.items()}
    one = read(loras.write_peft(tmp_path / "one.safetensors", tensors), targets)
    two = read(loras.write_peft(tmp_path / "two.safetensors", bare), targets)
    assert {t: set(layers) for t, layers in one.layers.items()} == {
        t: set(layers) for t, layers in two.layers.items()
    }


@pytest.mark.parametrize("form", loras.FORMS)
def test_every_form_gives_the_same_factors(targets: Targets, tmp_path: Path, form: str) -> None:
    clip = "" if form in loras.UNET_FORMS else f"{CLIP}|text_projection"
    tensors = loras.factors(targets, f"{EVERYTHING}|_embedding.linear", clip)
    assert "unet.add_embedding.linear_1.lora_A.weight" in tensors
    plain = read(loras.write_peft(tmp_path / "plain.safetensors", tensors), targets)
    path = saved(tmp_path / "a.safetensors", loras.renamed(tensors, form))
    adapter = read(path, targets)
    assert adapter.skipped == ()
    assert {t: set(layers) for t, layers in adapter.layers.items()} == {
        t: set(layers) for t, layers in plain.layers.items()
    }
    for target, layers in plain.layers.items():
        for name, factors in layers.items():
            assert torch.equal(adapter.layers[target][name].down, factors.down)
            assert torch.allclose(adapter.layers[target][name].up, factors.up * 2 / 4)


def test_a_third_factor_is_the_kernel(targets: Targets, tmp_path: Path) -> None:
    """LyCORIS' LoCon of a convolution: 1x1 down, 3x3 in the middle, 1x1 up."""
    generator = torch.Generator().manual_seed(0)
    stem = "lora_unet_mid_block_resnets_0_conv1"
    down, up = (torch.randn(*shape, generator=generator) for shape in ((4, 32, 1, 1), (32, 4)))
    mid = torch.randn(4, 4, 3, 3, generator=generator)
    parts = {"down": down, "mid": mid, "up": up[:, :, None, None]}
    tensors = {f"{stem}.lora_{part}.weight": tensor for part, tensor in parts.items()}
    path = saved(tmp_path / "a.safetensors", tensors)
    (layer,) = read(path, targets).layers["unet"].values()
    picture = torch.randn(1, 32, 5, 5, generator=generator)
    convolve = torch.nn.functional.conv2d
    want = convolve(convolve(convolve(picture, down), mid, padding=1), up[:, :, None, None])
    got = convolve(convolve(picture, layer.down, padding=1), layer.up[:, :, None, None])
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector.default.weight", "DoRA"),
        ("oft_unet_mid_block_attentions_0_proj_in.oft_blocks", "OFT"),
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "GLoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", "(IA)³"),
    ],
)
def test_other_kinds_are_refused_by_name(
    targets: Targets, tmp_path: Path, key: str, kind: str
) -> None:
    tensors = loras.factors(targets)
    error = refused(saved(tmp_path / "a.safetensors", tensors | {key: torch.ones(2)}), targets)
    assert error.keys == (key,)
    assert kind in str(error)


STRAYS = (
    "bundle_emb.mine.clip_l",
    "lora_te1_text_model_final_layer_norm.diff",
    "lora_unet_mid_block_attentions_0_norm.w_norm",
    "lora_unet_mid_block_attentions_0_proj_in.diff_b",
    "lora_unet_mid_block_resnets_0_conv1.alpha",
    "train_steps",
    "unet.conv_in.weight",
    "unet.mid_block.attentions.0.proj_in.lora_B.bias",
    "unet.time_embedding.cond_proj.lora_A.weight",
    "unet.time_embedding.cond_proj.lora_B.weight",
)


def test_what_fits_is_taken_and_the_rest_is_named(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets)
    plain = read(loras.write_peft(tmp_path / "plain.safetensors", tensors), targets)
    more = {key: torch.ones(2, 2) for key in STRAYS} | {"train_steps": torch.tensor([9])}
    adapter = read(saved(tmp_path / "a.safetensors", tensors | more), targets)
    assert tuple(sorted(adapter.skipped)) == STRAYS
    assert set(adapter.layers["unet"]) == set(plain.layers["unet"])


@pytest.mark.parametrize("key", STRAYS[:-2])
def test_a_file_of_such_tensors_alone_is_refused(
    targets: Targets, tmp_path: Path, key: str
) -> None:
    error = refused(saved(tmp_path / "a.safetensors", {key: torch.ones(2)}), targets)
    assert error.keys == (key,)
    assert ("full weight differences" if "diff" in key or "_norm" in key else "a LoRA") in str(
        error
    )


def test_one_layer_under_two_names(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, "mid_block.*to_q$")
    both = tensors | {k: t.clone() for k, t in loras.renamed(tensors, "ComfyUI").items()}
    error = refused(saved(tmp_path / "a.safetensors", both), targets)
    assert "two pairs for one layer" in str(error)
    both = tensors | {k.replace("lora_A.", "lora_A.b."): t.clone() for k, t in tensors.items()}
    error = refused(saved(tmp_path / "a.safetensors", both), targets)
    assert "two tensors for one factor" in str(error)


PROJ = "unet.mid_block.attentions.0.proj_in"


def wrong(**parts: object) -> dict[str, torch.Tensor]:
    """The factors of one layer of 32 inputs and outputs, some of them replaced."""
    names = {"A": "lora_A.weight", "B": "lora_B.weight", "alpha": "alpha"}
    sound = {"A": torch.ones(4, 32), "B": torch.ones(32, 4), "alpha": torch.tensor(4.0)} | parts
    return {f"{PROJ}.{names[part]}": tensor for part, tensor in sound.items()}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tensors", "part", "reason"),
    [
        (wrong(alpha=torch.ones(2)), "alpha", "not one number"),
        (wrong(alpha=torch.tensor(torch.nan)), "alpha", "alpha is nan"),
        (wrong(alpha=torch.tensor(torch.inf)), "alpha", "alpha is inf"),
        (wrong(alpha=torch.tensor(True)), "alpha", "BOOL"),
        (wrong(alpha=torch.empty(0)), "alpha", "not one number"),
        (wrong(A=torch.full((4, 32), torch.nan)), "lora_A.weight", "NaN"),
        (wrong(B=torch.full((32, 4), -torch.inf)), "lora_B.weight", "infinity"),
        (wrong(B=torch.full((32, 4), 1e300, dtype=torch.float64)), "lora_B.weight", "float32"),
        (wrong(B=torch.full((32, 4), 1e38), alpha=torch.tensor(1e3)), "lora_B.weight", "float32"),
        (wrong(A=torch.ones(4, 32, dtype=torch.int64)), "lora_A.weight", "I64"),
        (wrong(A=torch.ones(4, 32, dtype=torch.complex64)), "lora_A.weight", "C64"),
        (wrong(A=torch.empty(0, 32), B=torch.empty(32, 0)), "lora_A.weight", "rank of zero"),
        (wrong(A=torch.tensor(1.0)), "lora_A.weight", "rank of zero"),
        (wrong(A=torch.ones(32)), "lora_A.weight", "do not fit"),
        (wrong(A=torch.ones(4, 32, 1)), "lora_A.weight", "do not fit"),
        (wrong(B=torch.ones(4)), "lora_B.weight", "do not fit"),
        (wrong(B=torch.tensor(1.0)), "lora_B.weight", "do not fit"),
        (wrong(B=torch.ones(32, 5)), "lora_B.weight", "do not fit"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_used(
    targets: Targets, tmp_path: Path, tensors: dict[str, torch.Tensor], part: str, reason: str
) -> None:
    error = refused(saved(tmp_path / "a.safetensors", tensors), targets)
    assert f"{PROJ}.{part}" in error.keys
    assert reason in str(error)


def test_numbers_that_leave_the_layers_dtype(tmp_path: Path) -> None:
    unet = nn.Module()
    unet.conv_in = nn.Linear(2, 2, dtype=torch.float16)
    tensors = {"unet.conv_in.lora_A.weight": torch.full((1, 2), 1e6)}
    tensors["unet.conv_in.lora_B.weight"] = torch.ones(2, 1)
    error = refused(saved(tmp_path / "a.safetensors", tensors), {"unet": unet})
    assert "float16" in str(error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_every_type_of_numbers(targets: Targets, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: t.to(dtype) for key, t in wrong(alpha=torch.tensor(2.0)).items()}
    tensors[f"{PROJ}.alpha"] = torch.tensor(2)  # a whole number, as some write it
    (layer,) = read(saved(tmp_path / "a.safetensors", tensors), targets).layers["unet"].values()
    assert torch.equal(layer.up, torch.full((32, 4), 0.5))


CONFIG = "lora_adapter_metadata"


def _patterns(*patterns: str) -> str:
    """The header of a file with these patterns."""
    return json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": dict.fromkeys(patterns, 4)})


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("{", CONFIG),
        ("[" * 100_000, CONFIG),
        ("1" * 5000, CONFIG),
        ("[]", CONFIG),
        ('"unet"', CONFIG),
        ('{"unet.lora_alpha": null}', "unet.lora_alpha"),
        ('{"unet.lora_alpha": [4]}', "unet.lora_alpha"),
        ('{"unet.lora_alpha": "4"}', "unet.lora_alpha"),
        ('{"unet.lora_alpha": true}', "unet.lora_alpha"),
        ('{"unet.lora_alpha": NaN}', "unet.lora_alpha"),
        (f'{{"unet.lora_alpha": 1{"0" * 400}}}', "unet.lora_alpha"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": ["to_q"]}', "unet.alpha_pattern"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 4}}', "unet.alpha_pattern"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+": 4}}', "unet.alpha_pattern"),
        (_patterns("(.|.)" * 30 + "!"), "unet.alpha_pattern"),
        (_patterns(".??" * 60 + "!"), "unet.alpha_pattern"),
        (_patterns(*(f"{n}.*" for n in range(33))), "unet.alpha_pattern"),
        (_patterns(*map(str, range(4097))), "unet.alpha_pattern"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": null}}', "unet.alpha_pattern.to_q"),
        ('{"unet.lora_alpha": 4, "unet.use_rslora": "no"}', "unet.use_rslora"),
    ],
)
def test_headers_that_cannot_be_used(
    targets: Targets, tmp_path: Path, header: str, key: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(loras.factors(targets), path, metadata={CONFIG: header})
    error = refused(path, targets)
    assert error.keys == (key,)
    assert "header" in str(error)


@pytest.mark.parametrize("header", ["{}", "null", '{"unet.lora_alpha": 2, "vae.lora_alpha": 1}'])
def test_headers_that_say_little(targets: Targets, tmp_path: Path, header: str) -> None:
    save_file(wrong(), tmp_path / "a.safetensors", metadata={CONFIG: header, "other": "{"})
    assert read(tmp_path / "a.safetensors", targets).layers


def test_names_that_would_fill_or_forge_a_log(targets: Targets, tmp_path: Path) -> None:
    names = [f"{PROJ}.lora_A.weight", f"{PROJ}.{'x' * 5000}\nERROR forged.hada_w1_a"]
    tensors = {name: torch.ones(4, 32) for name in names}
    message = str(refused(saved(tmp_path / "a.safetensors", tensors), targets))
    assert "a LoHa" in message
    assert "\n" not in message
    assert len(message) < 2000
    path = saved(tmp_path / "a.safetensors", wrong(A=torch.ones(*[1] * 500)))
    assert len(str(refused(path, targets))) < 2000


def test_mutated_files_are_read_or_refused(targets: Targets, tmp_path: Path) -> None:
    """Bytes of header and numbers changed, cut and repeated at random."""
    path = tmp_path / "a.safetensors"
    save_file(wrong() | {"x": torch.ones(1)}, path, metadata={CONFIG: '{"unet.lora_alpha": 4}'})
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(rng.choice([8, 400, len(data)]))
            data[at : at + rng.choice([0, 1, 1, 5])] = rng.choices(
                rng.choice([bytes(range(256)), b'0129-{}[]:,"']), k=rng.choice([0, 1, 1, 5])
            )
        path.write_bytes(data)
        with contextlib.suppress(AdapterMismatch):
            read(path, targets)


@pytest.mark.parametrize("kohya", [False, True])
def test_half_a_pair(targets: Targets, tmp_path: Path, kohya: bool) -> None:
    tensors = loras.factors(targets, CONVOLUTIONS)
    tensors = loras.to_kohya(tensors) if kohya else tensors
    lost = next(key for key in tensors if re.search(r"lora_(up|B)", key))
    del tensors[lost]
    error = refused(saved(tmp_path / "a.safetensors", tensors), targets)
    assert error.keys == (lost.replace("lora_up", "lora_down").replace("lora_B", "lora_A"),)


def test_a_lora_of_another_model_names_the_files_keys(targets: Targets, tmp_path: Path) -> None:
    wide = nn.ModuleDict({"conv_in": nn.Conv2d(4, 32, 3)})
    tensors = loras.random_factors("unet", wide, "conv_in")
    tensors |= loras.random_factors("unet", nn.ModuleDict({"nowhere": nn.Linear(2, 2)}), "nowhere")
    error = refused(loras.write_kohya(tmp_path / "a.safetensors", tensors), targets)
    assert set(error.keys) == {key for key in loras.to_kohya(tensors) if "alpha" not in key}
    assert "no such layer" in str(error)
    assert "[4, 4, 3, 3] and [32, 4, 1, 1] do not fit [4, 3, 3] → 16" in str(error)


def test_a_layer_that_is_no_linear_or_convolution(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.random_factors("unet", nn.ModuleDict({"time_proj": nn.Linear(2, 2)}), "time")
    error = refused(loras.write_peft(tmp_path / "a.safetensors", tensors), targets)
    assert "no such layer" in str(error)


def test_no_second_text_encoder_here(targets: Targets, tmp_path: Path) -> None:
    tensors = loras.factors(targets, clip=CLIP)
    path = loras.write_kohya(tmp_path / "a.safetensors", tensors)
    adapter = read(path, {"unet": targets["unet"], "text_encoder": targets["text_encoder"]})
    assert adapter.skipped
    assert all(key.startswith("lora_te2_") for key in adapter.skipped)
    tensors = loras.factors(targets, "", CLIP)
    path = loras.write_kohya(path, tensors)
    error = refused(path, {"text_encoder_2": targets["text_encoder_2"]})
    assert all(key.startswith("lora_te1_") for key in error.keys), "half of them is too little"


def test_unreadable_files(targets: Targets, tmp_path: Path) -> None:
    path = loras.write_peft(tmp_path / "a.safetensors", loras.factors(targets))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in str(refused(path, targets))
    path.write_bytes(b"")
    assert "cut short" in str(refused(path, targets))
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in str(refused(path, targets))
    with path.open("wb") as file:
        torch.save({"a": torch.ones(1)}, file)
    assert "pickle" in str(refused(path, targets))
    saved(path, {})
    assert "no tensors" in str(refused(path, targets))
    path.unlink()
    with pytest.raises(AdapterNotFound, match="is gone"):
        read(path, targets)


def test_a_failed_read_leaves_the_model_alone(targets: Targets, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[set[str], list[object]]]:
        return {
            name: (set(module.state_dict()), [vars(m).get("forward") for m in module.modules()])
            for name, module in targets.items()
        }

    before = state()
    tensors = loras.factors(targets)
    tensors["unet.conv_in.lora_A.weight"] = torch.ones(1, 2)
    tensors["unet.conv_in.lora_B.weight"] = torch.ones(2, 1)
    refused(loras.write_peft(tmp_path / "a.safetensors", tensors), targets)
    assert state() == before


@pytest.mark.parametrize("name", ["striped", "outlined"])
def test_the_adapters_that_ship_fit_their_model(name: str) -> None:
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(EMBEDDED / "base" / "unet")
    unet = UNet2DConditionModel.from_config(config)
    adapter = read(EMBEDDED / "loras" / f"{name}.safetensors", {"unet": unet})
    assert adapter.layers["unet"]
