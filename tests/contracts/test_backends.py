"""One suite that every backend passes: rows, sizes, timesteps, padding, adapters, errors, unload.

Each runs the embedded model's own parts, compiled for real, through `loading`, as the service
does. What a backend gives is compared with diffusers' modules in float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.check.parity import LEAST_PSNR_DB
from export.likeness import psnr_db
from sdxl_bento.backends.compiled import CompiledBackend
from sdxl_bento.backends.parts import Part
from sdxl_bento.config import Settings
from sdxl_bento.diffusion.backend import Mix, UNetInputs
from sdxl_bento.diffusion.conditioning import PromptCache
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.engine.request import Stage
from sdxl_bento.errors import RequestFailed
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving.loading import Loaded, folder_of, load_folder
from tests.support.loras import mix, wait_ready

ROOT = Path(__file__).resolve().parents[2]

COMPILED = ("openvino", "onnx", "inductor")  # those that a CPU can run
SLOW = {"inductor": "its compiler takes five minutes; SDXL_TEST_INDUCTOR=1 waits for it"}
HARDWARE = {
    "eager on cuda": "cuda", "inductor on cuda": "cuda", "onnx on cuda": "cuda", "tensorrt": "cuda",
}  # fmt: skip
ADAPTERS = ("outlined", "striped")


@pytest.fixture(scope="module")
def compiled_folder(compiled_tag: str) -> Path:
    """The embedded model with compiled backends in it."""
    return folder_of(compiled_tag)


@pytest.fixture(scope="module")
def inductor_folder(embedded_tag: str) -> Path:
    if not os.environ.get("SDXL_TEST_INDUCTOR"):
        pytest.skip(f"inductor: {SLOW['inductor']}")
    done = subprocess.run(
        [
            sys.executable, "-m", "export", "embedded", "--name", "sdxl-inductor",
            "--target", "inductor",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder_of(done.stdout.strip())


def load(folder: Path, backend: str, dtype: Any = "auto") -> Loaded:
    settings = Settings(backend=backend, dtype=dtype, allow_fallback=False)
    placement = Placement.choose("auto", dtype)
    tags = ("model", "model:1")
    loaded = load_folder("model", tags, folder, settings, placement, PromptCache(0), lambda: None)
    wait_ready(loaded.served.adapters, ADAPTERS)
    return loaded


@pytest.fixture(scope="module")
def reference(compiled_folder: Path) -> Iterator[Loaded]:
    loaded = load(compiled_folder, "eager", "fp32")
    yield loaded
    loaded.served.adapters.close()


@pytest.fixture(scope="module", params=["eager", *COMPILED, *HARDWARE])
def name(request: pytest.FixtureRequest) -> str:
    """The backend of this round, as tests are named after it."""
    name: str = request.param
    if HARDWARE.get(name) == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{name}: this machine has no CUDA device")
    return name


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, name: str) -> Path:
    """The model in which it is."""
    fixture = "inductor_folder" if name.startswith("inductor") else "compiled_folder"
    found: Path = request.getfixturevalue(fixture)
    return found


@pytest.fixture(scope="module")
def loaded(name: str, folder: Path) -> Iterator[Loaded]:
    loaded = load(folder, name.partition(" ")[0])
    yield loaded
    loaded.served.adapters.close()
    loaded.served.backend.unload()


def info_of(loaded: Loaded) -> BackendInfo:
    return loaded.info or BackendInfo(backend="eager", device="any", versions={}, dtype="fp32")


def draw_inputs(
    stage: Stage, mixes: Sequence[Mix], height: int = 16, width: int = 16, first: int = 0
) -> UNetInputs:
    """Rows with timesteps of their own; row i is the same in whatever batch it is."""
    rows = range(first, first + len(mixes))

    def draw(*shape: int) -> torch.Tensor:
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in rows]
        return torch.stack(drawn)

    base = stage is Stage.BASE
    ids = [128.0, 128.0, 0.0, 0.0, 128.0, 128.0] if base else [128.0, 128.0, 0.0, 0.0, 6.0]
    pooled = 64
    return UNetInputs(
        sample=draw(4, height, width),
        timestep=torch.tensor([float(999 - 90 * (row % 11)) for row in rows]),
        encoder_hidden_states=draw(77, 128 if base else 64),
        text_embeds=draw(pooled),
        time_ids=torch.tensor([ids] * len(mixes)),
        mixes=mixes,
    )


@torch.inference_mode()
def denoise(loaded: Loaded, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
    return loaded.served.backend.denoise(stage, inputs).float()


def assert_close(loaded: Loaded, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert psnr_db(found, expected) >= LEAST_PSNR_DB[info_of(loaded).dtype or "fp32"]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [Stage.BASE, Stage.REFINE])
def test_rows_with_their_own_timesteps(
    loaded: Loaded, reference: Loaded, stage: Stage, rows: int
) -> None:
    inputs = draw_inputs(stage, [()] * rows)
    assert_close(loaded, denoise(loaded, stage, inputs), denoise(reference, stage, inputs))


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.REFINE])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 20), (32, 12)])
def test_sizes(loaded: Loaded, reference: Loaded, stage: Stage, height: int, width: int) -> None:
    """All that the model takes: whole for the base model's levels, not all for the refiner's."""
    inputs = draw_inputs(stage, [(), ()], height, width)
    assert_close(loaded, denoise(loaded, stage, inputs), denoise(reference, stage, inputs))


# On noise a trained adapter changes little: these scales make it tell.
MIXES: list[list[Mix]] = [
    [mix(outlined=8.0)] * 2,
    [mix(outlined=8.0), (), mix(striped=7.0)],
    [mix(striped=-7.0), mix(outlined=6.0, striped=4.0), mix(striped=6.0), ()],
]


@pytest.mark.parametrize("mixes", MIXES, ids=["one", "mixed", "several"])
def test_adapters_by_row(loaded: Loaded, reference: Loaded, mixes: list[Mix]) -> None:
    inputs = draw_inputs(Stage.BASE, mixes)
    expected = denoise(reference, Stage.BASE, inputs)
    plain = denoise(reference, Stage.BASE, replace_mixes(inputs))
    assert psnr_db(plain, expected) < 30, "the adapters change too little to tell"
    assert_close(loaded, denoise(loaded, Stage.BASE, inputs), expected)


def replace_mixes(inputs: UNetInputs) -> UNetInputs:
    return replace(inputs, mixes=[()] * len(inputs.mixes))


EXACT = ("openvino", "onnx")  # on one thread of a CPU, which the tests have


def assert_same(loaded: Loaded, found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit where the runtime does not round by the shape of its batch."""
    if loaded.served.backend.name in EXACT and loaded.served.model.placement.mode == "cpu":
        assert torch.equal(found, expected)
    else:
        assert_close(loaded, found, expected)


COMPANIES: list[list[Mix]] = [
    [()] * 5,
    [(), mix(outlined=8.0), (), mix(striped=-7.0), ()],
    [mix(striped=6.0, outlined=4.0), mix(outlined=8.0), (), (), mix(outlined=8.0)],
]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 12)])
def test_a_row_is_the_same_in_any_company(loaded: Loaded, height: int, width: int) -> None:
    """Beside rows with and without adapters, at any place, and however the tables have grown."""
    for mixes in COMPANIES:
        together = denoise(loaded, Stage.BASE, draw_inputs(Stage.BASE, mixes, height, width))
        for i, own in enumerate(mixes):
            alone = draw_inputs(Stage.BASE, [own], height, width, first=i)
            assert_same(loaded, together[i : i + 1], denoise(loaded, Stage.BASE, alone))


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.REFINE])
def test_a_decoded_picture_is_the_same_in_any_company(loaded: Loaded, stage: Stage) -> None:
    latents = draw_inputs(stage, [()] * 4).sample
    with torch.inference_mode():
        together = loaded.served.backend.decode(stage, latents)
        alone = [loaded.served.backend.decode(stage, each) for each in latents.split(1)]
    assert_same(loaded, together, torch.cat(alone))


def test_batches_with_other_adapters_follow_each_other(loaded: Loaded, reference: Loaded) -> None:
    for mixes in [*MIXES, *reversed(MIXES)]:
        inputs = draw_inputs(Stage.BASE, mixes)
        assert_close(
            loaded, denoise(loaded, Stage.BASE, inputs), denoise(reference, Stage.BASE, inputs)
        )


def test_the_refiner_takes_no_adapters(loaded: Loaded) -> None:
    inputs = draw_inputs(Stage.REFINE, [mix(outlined=1.0)] * 2)
    plain = denoise(loaded, Stage.REFINE, replace_mixes(inputs))
    assert torch.equal(denoise(loaded, Stage.REFINE, inputs), plain)


def test_an_adapter_that_is_not_loaded_is_refused(loaded: Loaded) -> None:
    with pytest.raises(RequestFailed, match="not loaded: missing"):
        denoise(loaded, Stage.BASE, draw_inputs(Stage.BASE, [mix(missing=1.0)]))


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.REFINE])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 16, 24)])
def test_decode(
    loaded: Loaded, reference: Loaded, stage: Stage, batch: int, height: int, width: int
) -> None:
    latents = draw_inputs(stage, [()] * batch, height, width).sample
    with torch.inference_mode():
        found = loaded.served.backend.decode(stage, latents)
        expected = reference.served.backend.decode(stage, latents)
    assert found.dtype is torch.float32
    assert_close(loaded, found, expected)


def test_decode_in_tiles(loaded: Loaded, reference: Loaded) -> None:
    latents = draw_inputs(Stage.BASE, [()], 40, 48).sample
    outputs = []
    for each in (loaded, reference):
        vae = each.served.model.base.vae
        eager = getattr(each.served.backend, "_eager", each.served.backend)
        before = eager._tile_pixels, vae.tile_latent_min_size, vae.tile_sample_min_size
        eager._tile_pixels, vae.tile_latent_min_size, vae.tile_sample_min_size = 1, 16, 128
        try:
            with torch.inference_mode():
                outputs.append(each.served.backend.decode(Stage.BASE, latents))
        finally:
            eager._tile_pixels, vae.tile_latent_min_size, vae.tile_sample_min_size = before
    assert_close(loaded, *outputs)


def test_more_rows_than_a_graph_takes(loaded: Loaded) -> None:
    inputs = draw_inputs(Stage.BASE, [()] * 65, 8, 8)
    found = denoise(loaded, Stage.BASE, inputs)
    first = denoise(loaded, Stage.BASE, draw_inputs(Stage.BASE, [()] * 2, 8, 8))
    last = denoise(loaded, Stage.BASE, draw_inputs(Stage.BASE, [()] * 2, 8, 8, first=63))
    assert_close(loaded, found[:2], first)
    assert_close(loaded, found[63:], last)


def test_rows_are_filled_up_to_the_numbers_that_there_are_graphs_for(loaded: Loaded) -> None:
    backend = loaded.served.backend
    if not isinstance(backend, CompiledBackend):
        pytest.skip("eager: takes any number of rows")
    inputs = draw_inputs(Stage.BASE, [mix(outlined=8.0)] * 5)
    expected = denoise(loaded, Stage.BASE, inputs)
    seen: list[int] = []
    real = backend._parts["base/unet_slots"]

    class Watched:
        def __call__(self, tensors: Any) -> torch.Tensor:
            seen.append(len(tensors["sample"]))
            return real(tensors)

        def unload(self) -> None:
            real.unload()

    before = backend._info
    backend._info = before.model_copy(update={"rows": (2, 4)})
    backend._parts["base/unet_slots"] = Watched()
    try:
        found = denoise(loaded, Stage.BASE, inputs)
    finally:
        backend._info, backend._parts["base/unet_slots"] = before, real
    assert seen == [4, 2], "five rows: a full four, and one filled up to two"
    assert_close(loaded, found, expected)


def test_a_wrong_input_is_an_error_and_harms_nothing(loaded: Loaded, reference: Loaded) -> None:
    good = draw_inputs(Stage.BASE, [(), ()])
    wrong = replace(good, encoder_hidden_states=good.encoder_hidden_states[:, :, :5])
    with pytest.raises((RuntimeError, ValueError)):  # the second is what `check_shapes` raises
        denoise(loaded, Stage.BASE, wrong)
    assert_close(loaded, denoise(loaded, Stage.BASE, good), denoise(reference, Stage.BASE, good))


def test_warm_up_runs_every_part(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every shape that it has a graph of its own for; what these are is `test_compiled`'s."""
    backend = loaded.served.backend
    if not isinstance(backend, CompiledBackend):
        backend.warm_up()
        return
    runs: Counter[str] = Counter()

    def counted(name: str, part: Part) -> Any:
        def run(inputs: Any) -> torch.Tensor:
            output = part(inputs)
            assert output.isfinite().all()
            runs[name] += 1
            return output

        return run

    parts = {name: counted(name, part) for name, part in backend._parts.items()}
    monkeypatch.setattr(backend, "_parts", parts)
    backend.warm_up()
    sizes, rows = len(info_of(loaded).sizes) or 1, len(info_of(loaded).rows) or 2
    assert runs == {
        name: sizes * (1 if name.endswith("vae_decoder") else rows) for name in backend._parts
    }


def test_weights_are_not_there_twice(loaded: Loaded) -> None:
    on_meta = loaded.served.model.base.unet.device.type == "meta"
    assert on_meta == (loaded.info is not None)


def test_unload(folder: Path, loaded: Loaded) -> None:
    other = load(folder, loaded.served.backend.name)
    other.served.adapters.close()
    other.served.backend.unload()
    with pytest.raises(AttributeError, match="base"):  # the model has no pipelines any more
        denoise(other, Stage.BASE, draw_inputs(Stage.BASE, [()]))
    assert denoise(loaded, Stage.BASE, draw_inputs(Stage.BASE, [()])).isfinite().all()


def test_the_manifest_says_what_it_is(folder: Path, loaded: Loaded) -> None:
    manifest = Manifest.load(folder)
    if loaded.info is None:
        return
    info = loaded.info
    assert info in manifest.backends
    assert info.adapters == "slots"
    assert set(info.artifacts) == {
        "base/unet", "base/unet_slots", "base/vae_decoder", "refiner/unet", "refiner/vae_decoder",
    }  # fmt: skip
    assert {figure.part for figure in info.parity} == set(info.artifacts)
    assert info.step_ms is not None
    assert info.step_ms > 0
    files = [path for path in (folder / "compiled" / info.label).rglob("*") if path.is_file()]
    assert info.bytes == sum(path.stat().st_size for path in files)
