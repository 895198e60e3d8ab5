"""What each stage does to its requests and to no others, over a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.full_size import NAME, TINY, serve
from sdxl_bento.diffusion.backend import UNetInputs
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.diffusion.plan import ModelFacts, plan, resolve
from sdxl_bento.diffusion.runner import Runner, Served
from sdxl_bento.engine.core import Engine
from sdxl_bento.engine.executor import Completion, DeviceOutOfMemory
from sdxl_bento.engine.request import Request, Stage, Unit
from sdxl_bento.errors import NumericalError
from sdxl_bento.order import InputImage, Order
from sdxl_bento.params import GenerateParams

SIDE = 64


class Backend:
    """The real one, but for what a test puts in its way."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.name = real.name
        self.error: Exception | None = None
        self.poisoned: float | None = None  # timestep whose rows become NaN
        self.seen: list[UNetInputs] = []

    def denoise(self, stage: Stage, inputs: UNetInputs) -> torch.Tensor:
        self.seen.append(inputs)
        if self.error is not None:
            raise self.error
        prediction: torch.Tensor = self.real.denoise(stage, inputs)
        if self.poisoned is not None:
            prediction[inputs.timestep == self.poisoned] = float("nan")
        return prediction

    def decode(self, stage: Stage, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.real.decode(stage, latents)
        return pixels

    def warm_up(self) -> None:
        self.real.warm_up()

    def unload(self) -> None:
        self.real.unload()


class Adapters:
    """A pool of which the test says what is loaded."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.loaded = False
        self.used: list[str] = []
        self.released: list[str] = []

    def ready(self, names: list[str]) -> bool:
        return self.loaded

    def use(self, names: list[str]) -> None:
        self.used += names

    def release(self, names: list[str]) -> None:
        self.released += names


class Bench:
    def __init__(self) -> None:
        served, facts = serve(Placement.choose("cpu", "fp32"), TINY)
        self.facts: ModelFacts = facts
        self.backend = Backend(served.backend)
        self.adapters = Adapters(served.adapters)
        self.served: Served = replace(served, backend=self.backend, adapters=self.adapters)  # type: ignore[arg-type]
        self.runner = Runner({NAME: self.served})
        self.ids = 0

    def request(
        self, *, image: Image.Image | None = None, preview: bool = False, **fields: Any
    ) -> Request:
        asked = {"prompt": "a", "width": SIDE, "height": SIDE, "num_inference_steps": 3, **fields}
        order = Order("generate", GenerateParams.model_validate(asked))
        if image is not None:
            order = replace(order, task="img2img", pictures={"image": InputImage.of(image, b"")})
        job = plan(resolve(order, self.facts, seed=5), self.facts, wants_preview=preview)
        self.ids += 1
        height, width = asked["height"], asked["width"]
        return Request(f"r{self.ids}", NAME, height, width, job.phases(), job)

    def launch(self, *requests: Request) -> None:
        """The next unit of all of them, as the engine would."""
        unit = Unit(requests[0].key, requests, tuple(request.step for request in requests))
        self.runner.launch(unit)
        for request in requests:
            request.advance()

    def finish(self, *requests: Request) -> list[Completion]:
        """Every unit that is left of them, together as long as they are in one stage."""
        done: list[Completion] = []
        while left := [request for request in requests if not request.launched_all]:
            self.launch(*[request for request in left if request.key == left[0].key])
            done += self.runner.collect(0)
        return done

    def draw(self, **fields: Any) -> Image.Image:
        request = self.request(**fields)
        picture: Any = self.finish(request)[-1].results[request.id]
        self.runner.release(request)
        return picture  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole() -> Bench:
    return Bench()


@pytest.fixture
def bench(whole: Bench) -> Iterator[Bench]:
    yield whole
    whole.backend.error = whole.backend.poisoned = None
    whole.backend.seen.clear()
    whole.adapters.__init__(whole.adapters.real)  # type: ignore[misc]
    whole.runner.__init__({NAME: whole.served})  # type: ignore[misc]


def difference(a: Image.Image, b: Image.Image) -> int:
    pairs = zip(a.tobytes(), b.tobytes(), strict=True)
    return max(abs(one - other) for one, other in pairs)


def test_rows_are_negative_then_positive_each_with_its_requests_time(bench: Bench) -> None:
    guided, plain = bench.request(), bench.request(guidance_scale=1.0, num_inference_steps=2)
    for request in (guided, plain):
        bench.launch(request)
    latents = bench.runner._states[guided.id].latents
    bench.launch(guided, plain)
    [inputs] = bench.backend.seen
    assert [len(tensor) for tensor in inputs.tensors().values()] == [3] * 5
    assert inputs.mixes == [(), (), ()]
    first, second = (request.payload.tables[Stage.BASE].timesteps[0] for request in (guided, plain))  # type: ignore[attr-defined]
    assert inputs.timestep.tolist() == [first, first, second]
    assert torch.equal(inputs.sample[0], inputs.sample[1])
    scale = guided.payload.tables[Stage.BASE].input_scale[0]  # type: ignore[attr-defined]
    assert scale < 0.5
    torch.testing.assert_close(inputs.sample[:1], latents * float(scale))
    assert not inputs.encoder_hidden_states[0].any(), "zeros stand for no negative prompt"
    assert torch.equal(inputs.encoder_hidden_states[1], inputs.encoder_hidden_states[2])
    # One seed, so one noise, each scaled as its own first step wants it.
    ratio = inputs.sample[2] / inputs.sample[0]
    assert ratio.std() < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 9.0, "guidance_rescale": 0.7},
        {"sampler": "euler_a"},
        {"sampler": "dpmpp_2m"},
        {"sampler": "dpmpp_2m_sde"},
        {"sampler": "lcm"},
    ],
    ids=str,
)
def test_company_changes_no_picture(bench: Bench, fields: dict[str, Any]) -> None:
    """Guidance, its rescale, the sampler's history and its noise are each request's own."""
    alone = bench.draw(**fields)
    request = bench.request(**fields)
    company = [
        bench.request(seed=9, num_inference_steps=4, guidance_scale=3.0, guidance_rescale=0.3),
        request,
        bench.request(seed=8, guidance_scale=0.0, sampler="euler_a"),
    ]
    done = bench.finish(*company)
    [picture] = [d.results[request.id] for d in done if request.id in d.results]
    assert isinstance(picture, Image.Image)
    assert difference(picture, alone) <= 1


def test_each_parameter_of_guidance_changes_the_picture(bench: Bench) -> None:
    pictures = [
        bench.draw(guidance_scale=scale, guidance_rescale=amount)
        for scale, amount in ((0.0, 0.0), (3.0, 0.0), (9.0, 0.0), (9.0, 0.5), (9.0, 1.0))
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_guidance_by_hand(bench: Bench) -> None:
    """negative + scale * (positive - negative); rescaled to the spread of the positive one."""
    request = bench.request(guidance_scale=7.0, guidance_rescale=0.25, sampler="ddim")
    bench.launch(request)
    state = bench.runner._states[request.id]
    before = state.latents
    bench.launch(request)
    [inputs] = bench.backend.seen
    with torch.inference_mode():
        negative, positive = bench.backend.real.denoise(Stage.BASE, inputs).split(1)
    guided = negative + 7.0 * (positive - negative)
    pulled = guided * positive.std() / guided.std()
    wanted = 0.25 * pulled + 0.75 * guided
    table = request.payload.tables[Stage.BASE].coefficients[0]  # type: ignore[attr-defined]
    denoised = table[0] * before + table[1] * wanted
    torch.testing.assert_close(state.previous, denoised.float(), rtol=1e-4, atol=1e-4)


def test_what_fails_changes_nothing_and_can_run_again(bench: Bench) -> None:
    """Noise that was drawn for a step that failed is the noise of the step that succeeds."""
    fields = {"sampler": "euler_a", "num_inference_steps": 4}
    alone = bench.draw(**fields)
    request = bench.request(**fields)
    bench.launch(request)
    for error, raised in (
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceOutOfMemory),
        (DeviceOutOfMemory("the part is too large"), DeviceOutOfMemory),
        (MemoryError("no room"), DeviceOutOfMemory),
        (RuntimeError("an odd kernel"), RuntimeError),
    ):
        bench.backend.error = error
        with pytest.raises(raised) as caught:
            bench.launch(request)
        assert isinstance(caught.value, DeviceOutOfMemory) == (raised is DeviceOutOfMemory)
        bench.backend.error = None
        bench.launch(request)
    assert request.in_flight == 5, "the prompt and four steps were launched"
    picture: Any = bench.finish(request)[-1].results[request.id]
    assert difference(picture, alone) <= 1


def test_numbers_that_are_not_finite_end_only_their_request(bench: Bench) -> None:
    good, bad = bench.request(), bench.request(num_inference_steps=4)
    bench.backend.poisoned = bad.payload.tables[Stage.BASE].timesteps[1]  # type: ignore[attr-defined]
    for request in (good, bad):
        bench.launch(request)
    while good.stage is Stage.BASE:
        bench.launch(good, bad)
    bench.launch(bad)
    bench.launch(good, bad)
    *_, last = bench.runner.collect(0)
    assert isinstance(last.failures[bad.id], NumericalError)
    assert set(last.results) == {good.id}


def test_image_to_image_begins_from_its_picture(bench: Bench) -> None:
    """Little strength keeps it; its size is fitted to the request's."""
    start = Image.new("RGB", (32, 128), (255, 0, 0))
    request = bench.request(image=start, strength=0.34, num_inference_steps=3, guidance_scale=1.0)
    assert [phase.stage for phase in request.phases] == [
        Stage.ENCODE, Stage.IMAGE, Stage.BASE, Stage.DECODE,
    ]  # fmt: skip
    bench.launch(request)
    bench.launch(request)
    state = bench.runner._states[request.id]
    keep, noise = request.payload.tables[Stage.BASE].start[0]  # type: ignore[attr-defined]
    vae = bench.served.model.base.vae
    pixels = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, SIDE, SIDE)
    draws = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        posterior = vae.encode(pixels).latent_dist
        sample = posterior.mean + posterior.std * torch.randn(state.shape, generator=draws)
    wanted = sample * vae.config.scaling_factor * keep
    wanted = wanted + torch.randn(state.shape, generator=draws) * noise
    torch.testing.assert_close(state.latents, wanted.float(), rtol=1e-4, atol=1e-4)


def test_previews_are_of_those_who_asked_and_of_their_step(bench: Bench) -> None:
    watched, other = bench.request(preview=True), bench.request(seed=6)
    done = bench.finish(watched, other)
    steps = [completion for completion in done if completion.unit.key.stage is Stage.BASE]
    assert all(set(completion.previews) == {watched.id} for completion in steps)
    assert not done[0].previews
    assert not done[-1].previews
    pictures = [completion.previews[watched.id] for completion in steps]
    assert all(isinstance(p, Image.Image) and p.size == (SIDE // 8, SIDE // 8) for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 3  # type: ignore[attr-defined]


def test_units_complete_in_order_and_are_timed(bench: Bench) -> None:
    request = bench.request()
    bench.launch(request)
    bench.launch(request)
    first, second = bench.runner.collect(0)
    assert [first.unit.key.stage, second.unit.key.stage] == [Stage.ENCODE, Stage.BASE]
    assert 0 < first.seconds < 60
    assert list(bench.runner.collect(0)) == []


def test_adapters_are_held_from_the_first_unit_to_the_end(bench: Bench) -> None:
    request = bench.request(loras=[{"name": "b", "scale": 0.5}, {"name": "a"}])
    late = bench.request(loras=[{"name": "a"}], lora_late_ok=True)
    assert not bench.runner.ready(request)
    assert bench.runner.ready(late)
    assert bench.adapters.used == []
    assert bench.runner._mix(late, Stage.BASE) == ()
    bench.adapters.loaded = True
    assert bench.runner.ready(request)
    assert bench.runner.ready(request)
    assert bench.adapters.used == ["a", "b"], "once"
    assert bench.runner._mix(request, Stage.BASE) == (("a", 1.0), ("b", 0.5))
    assert bench.runner._mix(request, Stage.REFINE) == ()
    assert bench.runner._mix(late, Stage.BASE) == (("a", 1.0),)
    bench.runner.release(request)
    assert bench.adapters.released == ["a", "b"]
    bench.runner.release(request)
    assert bench.adapters.released == ["a", "b"]


def test_a_released_request_is_forgotten(bench: Bench) -> None:
    engine = Engine(bench.runner)
    request = bench.request()
    engine.submit(request)
    while engine.step():
        pass
    assert isinstance(request.result, Image.Image)
    assert not bench.runner._states
    assert not bench.runner._pending


@pytest.mark.parametrize(
    ("sampler", "drawn"), [("euler", []), ("euler_a", [0, 1, 2]), ("lcm", [0, 1])]
)
def test_noise_is_drawn_where_the_sampler_draws_and_in_order(
    bench: Bench, sampler: str, drawn: list[int]
) -> None:
    request = bench.request(sampler=sampler)
    bench.launch(request)
    state = bench.runner._states[request.id]
    draws = torch.Generator().manual_seed(5)

    def draw() -> torch.Tensor:
        return torch.randn(state.shape, generator=draws)

    scale = request.payload.tables[Stage.BASE].init_noise_sigma  # type: ignore[attr-defined]
    torch.testing.assert_close(state.latents, draw() * scale)
    for step in range(3):
        wanted = draw() if step in drawn else torch.zeros(state.shape)
        for _ in range(2):  # a step that has to be run again has the same noise
            assert torch.equal(state.noise(Stage.BASE, step), wanted)
        state.step_done(state.latents, state.previous)


def test_pictures_are_decoded_in_tiles_above_a_size(bench: Bench) -> None:
    vae, eager = bench.served.model.base.vae, bench.backend.real
    limit, latents = eager._tile_pixels, torch.zeros(1, 4, 8, 16)
    try:
        for pixels, tiled in ((64 * 128 - 1, True), (64 * 128, False)):
            eager._tile_pixels = pixels
            with torch.no_grad():
                eager.decode(Stage.BASE, latents)
            assert vae.use_tiling is tiled
    finally:
        eager._tile_pixels, vae.use_tiling = limit, False
