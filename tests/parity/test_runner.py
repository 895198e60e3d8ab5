"""What the data plane does when things go wrong, and what it does besides drawing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_bento.config import Settings
from sdxl_bento.diffusion.backend import UNetInputs
from sdxl_bento.engine.request import Stage
from sdxl_bento.errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConfigurationError,
    DeadlineInfeasible,
    InvalidInput,
    NumericalError,
    RequestFailed,
)
from sdxl_bento.order import Order
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.generator import Generator
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.results import Generation, Progress, Provenance
from tests.parity.conftest import draw, largest_difference, psnr, started

EMBEDDED = Path(__file__).parents[2] / "export" / "embedded" / "weights"


def request(**changes: Any) -> GenerateParams:
    given = {"prompt": "a red circle on a blue background", "num_inference_steps": 6, **changes}
    return GenerateParams.model_validate(given)


def loaded_model(generator: Generator) -> Loaded:
    return generator.models.get()


class Faulty:
    """A backend that goes wrong where it is told to; the rest is the real one."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.name = real.name
        self.most_rows = 100
        self.poisoned: float | None = None  # timestep whose rows become NaN
        self.raise_at: float | None = None
        self.rows: list[int] = []

    def denoise(self, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
        self.rows.append(len(inputs.sample))
        if len(inputs.sample) > self.most_rows:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (a test says so)")
        if self.raise_at is not None and bool((inputs.timestep == self.raise_at).any()):
            raise RuntimeError("the device did something odd")
        prediction: torch.Tensor = self.real.denoise(stage, inputs)
        if self.poisoned is not None:
            prediction[inputs.timestep == self.poisoned] = float("nan")
        return prediction

    def decode(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.real.decode(stage, latents)
        return pixels

    def unload(self) -> None:
        self.real.unload()


@pytest.fixture
def faulty(generator: Generator) -> Iterator[Faulty]:
    served = loaded_model(generator).served
    backend = Faulty(served.backend)
    object.__setattr__(served, "backend", backend)
    yield backend
    object.__setattr__(served, "backend", backend.real)
    generator._engine.engine.scheduler._learned_rows.clear()


async def together(generator: Generator, *requests: GenerateParams) -> list[Any]:
    calls = [draw(generator, params) for params in requests]
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_out_of_memory_halves_the_batch_and_loses_nothing(
    generator: Generator, faulty: Faulty
) -> None:
    requests = [request(seed=i, sampler="euler_a") for i in range(6)]  # with noise at each step
    alone = [await draw(generator, params) for params in requests]
    faulty.most_rows = 5
    faulty.rows.clear()
    for one, expected in zip(await together(generator, *requests), alone, strict=True):
        assert isinstance(one, Generation)
        assert largest_difference(one.images[0].image, expected.images[0].image) <= 1
    assert max(faulty.rows) == 12
    learned = faulty.rows[-6:]
    assert max(learned) <= 5, "the limit is remembered"


async def test_a_request_that_never_fits_fails_alone(generator: Generator, faulty: Faulty) -> None:
    faulty.most_rows = 1
    large, small = await together(generator, request(), request(guidance_scale=1.0))
    assert isinstance(large, RequestFailed)
    assert "out of memory" in str(large)
    assert isinstance(small, Generation)


async def test_nan_in_one_request_harms_no_other(generator: Generator, faulty: Faulty) -> None:
    expected = await draw(generator, request(seed=3))
    twelve = request(seed=4, num_inference_steps=12)
    # A timestep of twelve steps that six steps do not visit.
    faulty.poisoned = 1000 // 12 * 7 + 1
    good, bad = await together(generator, request(seed=3), twelve)
    assert isinstance(bad, NumericalError)
    assert "LoRA outlined, striped" not in str(bad)
    with_two = request(num_inference_steps=12, loras=[{"name": "striped"}, {"name": "outlined"}])
    with pytest.raises(NumericalError, match="drawn with the LoRA outlined, striped"):
        await draw(generator, with_two)
    assert largest_difference(good.images[0].image, expected.images[0].image) <= 1


async def test_an_odd_error_fails_only_the_request_it_belongs_to(
    generator: Generator, faulty: Faulty
) -> None:
    expected = await draw(generator, request(seed=3))
    faulty.raise_at = 1000 // 12 * 7 + 1
    bad, good = await together(generator, request(seed=4, num_inference_steps=12), request(seed=3))
    assert isinstance(bad, RequestFailed)
    assert "something odd" in str(bad)
    assert largest_difference(good.images[0].image, expected.images[0].image) <= 1
    assert generator.state == "ready"


async def test_progress_counts_every_step_and_previews_look_like_the_picture(
    generator: Generator,
) -> None:
    seen: list[Progress] = []
    params = request(refiner=True, high_noise_frac=0.5, seed=1, num_inference_steps=10)
    done = await draw(generator, params, on_progress=seen.append)
    assert seen[0].stage == "queued"
    denoising = [event for event in seen if event.stage in ("base", "refine")]
    assert [event.step for event in denoising] == list(range(1, 11))
    assert {event.steps for event in denoising} == {10}
    assert {event.stage for event in denoising} == {"base", "refine"}
    preview = denoising[-1].preview
    assert preview is not None
    assert preview.size == (16, 16)
    whole = done.images[0].image
    assert psnr(whole.resize((16, 16)).resize((128, 128)), preview.resize((128, 128))) > 12


async def test_prompts_are_encoded_once(generator: Generator) -> None:
    cache = loaded_model(generator).served.conditioner.cache
    await draw(generator, request(seed=1))
    misses = cache.misses
    await draw(generator, request(seed=2, num_images=3))
    assert cache.misses == misses
    await draw(generator, request(seed=1, loras=[{"name": "striped"}]))
    assert cache.misses == misses, "this adapter has nothing for the text encoders"


async def test_a_late_adapter_is_taken_up_only_where_asked(generator: Generator) -> None:
    style = {"loras": [{"name": "striped"}], "seed": 2, "num_inference_steps": 12}
    late = await draw(generator, request(lora_late_ok=True, **style))
    whole = await draw(generator, request(**style))
    again = await draw(generator, request(lora_late_ok=True, **style))
    assert largest_difference(again.images[0].image, whole.images[0].image) <= 1
    assert late.images[0].image.size == whole.images[0].image.size


async def test_a_lora_for_another_model_says_which_keys(embedded_tag: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(4, 7), f"{key}.lora_B.weight": torch.ones(7, 4)},
        tmp_path / "alien.safetensors",
    )
    generator = await started(Settings(model=embedded_tag, lora_dir=tmp_path))
    assert "alien" in [lora.name for lora in generator.models.adapters()]
    with pytest.raises(AdapterMismatch, match=r"attn1\.to_q"):
        await draw(generator, request(loras=[{"name": "alien"}]))
    await draw(generator, request())
    await generator.stop()


async def test_a_lora_that_arrives_and_leaves(embedded_tag: str, tmp_path: Path) -> None:
    generator = await started(Settings(model=embedded_tag, lora_dir=tmp_path))
    path = tmp_path / "styles" / "New.SAFETENSORS"
    params = request(seed=1, loras=[{"name": "styles/New"}])
    order = Order("generate", params)
    with pytest.raises(AdapterNotFound):
        await draw(generator, params)
    path.parent.mkdir()
    path.write_bytes((EMBEDDED / "loras" / "striped.safetensors").read_bytes())
    await generator.look_up_adapters(order)
    new = await draw(generator, params)
    same = await draw(generator, request(seed=1, loras=[{"name": "striped"}]))
    assert largest_difference(new.images[0].image, same.images[0].image) <= 1
    [listed] = [each for each in generator.models.adapters() if each.name == "styles/New"]
    assert (listed.loaded, listed.size_bytes) == (True, path.stat().st_size)
    path.write_bytes((EMBEDDED / "loras" / "outlined.safetensors").read_bytes())
    await generator.look_up_adapters(order)
    other = await draw(generator, params)
    assert largest_difference(new.images[0].image, other.images[0].image) > 1, "it has changed"
    path.unlink()
    await generator.look_up_adapters(order)
    with pytest.raises(AdapterNotFound):
        await draw(generator, params)
    assert "styles/New" not in [each.name for each in generator.models.adapters()]
    await generator.stop()


async def test_two_models_share_one_engine(embedded_tag: str) -> None:
    name = embedded_tag.partition(":")[0]
    generator = await started(Settings(model=embedded_tag, models=(f"{name}:latest",)))
    first, second = (model.name for model in generator.models.summaries())
    assert first != second
    for asked in (None, first, embedded_tag):
        assert generator.models.name_of(asked) == first
    assert generator.models.name_of(f"{name}:latest") == second
    assert generator.models.name_of([first]) is generator.models.name_of("nope") is None
    one, other = await together(
        generator, request(seed=1, model=first), request(seed=1, model=second)
    )
    assert largest_difference(one.images[0].image, other.images[0].image) <= 1
    assert (one.params.model, other.params.model) == (first, second)
    await generator.stop()


async def test_large_pictures_are_decoded_in_tiles(embedded_tag: str) -> None:
    whole = await started(Settings(model=embedded_tag))
    tiled = await started(Settings(model=embedded_tag, vae_tile_pixels=128 * 128))
    params = request(seed=1, width=256, height=256, num_inference_steps=15)
    a = (await draw(whole, params)).images[0].image
    b = (await draw(tiled, params)).images[0].image
    assert largest_difference(a, b) > 0, "it did go another way"
    assert psnr(a, b) > 25
    await whole.stop()
    await tiled.stop()


async def test_deadlines_are_kept_refused_or_met_with_fewer_steps(generator: Generator) -> None:
    slow = {"num_inference_steps": 100, "seed": 1}
    with pytest.raises(DeadlineInfeasible) as refused:
        await draw(generator, request(slo_ms=50, **slow))
    assert refused.value.retry_after_s > 0
    steps = (await draw(generator, request(slo_ms=60_000, **slow))).params.num_inference_steps
    assert steps == 100
    cost = generator._engine.engine.cost
    step_s = cost.unit(loaded_key(generator), 2)
    tight = step_s * 40 * 1e3
    shorter = await draw(generator, request(slo_ms=tight, degrade_min_steps=2, **slow))
    assert 2 <= shorter.params.num_inference_steps < 100


def loaded_key(generator: Generator) -> Any:
    from sdxl_bento.engine.request import BatchKey

    loaded = loaded_model(generator)
    return BatchKey(loaded.name, Stage.BASE, 128, 128)


@pytest.mark.parametrize("mode", ["cuda", "enable_model_cpu_offload"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
async def test_a_device_that_is_not_there_is_named(embedded_tag: str, mode: Any) -> None:
    generator = Generator(Settings(model=embedded_tag, device=mode))
    generator.start()
    while generator.state == "loading":  # noqa: ASYNC110  another thread changes it
        await asyncio.sleep(0.01)
    assert generator.state == "dead"
    assert f"SDXL_DEVICE is {mode}" in generator.state_reason
    assert ConfigurationError.__name__ in generator.state_reason


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": 100}, "width"),
        ({"height": 4096}, "height"),
        ({"num_inference_steps": 200}, "num_inference_steps"),
        ({"num_images": 16}, "num_images"),
        ({"sampler": "lcm", "num_inference_steps": 60}, "num_inference_steps"),
        ({"refiner": True, "high_noise_frac": 0.9999, "num_inference_steps": 2}, "high_noise_frac"),
    ],
)
async def test_what_the_model_or_server_does_not_allow(
    generator: Generator, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await draw(generator, request(**changes))
    assert refused.value.field == field
    assert generator.activity.stats()["running"] == 0


async def test_a_call_is_resolved_as_it_is_drawn(generator: Generator) -> None:
    for params in (request(seed=3), request(seed=3, width=64, height=192, sampler="ddim")):
        resolved = generator.resolve(Order("generate", params))
        assert resolved == (await draw(generator, params)).order
        assert generator.resolve(Order("generate", resolved.params)) == resolved


async def test_pictures_that_are_there_are_not_drawn(generator: Generator) -> None:
    whole = await draw(generator, request(seed=3, num_images=3))
    rest = await draw(generator, request(seed=3, num_images=3), skip={0, 2})
    assert [(made.index, made.seed) for made in rest.images] == [(1, 4)]
    assert largest_difference(rest.images[0].image, whole.images[1].image) <= 1


def provenance(generator: Generator, params: GenerateParams) -> Provenance:
    return generator.provenance(generator.resolve(Order("generate", params)))


async def test_provenance(generator: Generator) -> None:
    plain = provenance(generator, request())
    manifest = loaded_model(generator).served.model.manifest
    assert plain.artifact == sha256(manifest.model_dump_json().encode()).hexdigest()
    assert (plain.model.partition(":")[0], plain.backend) == ("sdxl-embedded", "eager")
    assert plain == provenance(generator, request(seed=5, num_inference_steps=9))
    striped = provenance(generator, request(loras=[{"name": "striped"}]))
    [info] = [lora for lora in manifest.loras if lora.name == "striped"]
    assert striped == replace(plain, loras=(("striped", info.sha256),))
    with pytest.raises(AdapterNotFound):
        provenance(generator, request(loras=[{"name": "nobody"}]))
