"""From an order to its answer, with a fake generator: cache, draw, provenance, publish."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_bento.config import Settings
from sdxl_bento.drawing import Answer, Drawing
from sdxl_bento.errors import AdapterNotFound, InvalidInput, ModelNotFound, Overloaded
from sdxl_bento.order import InputImage, Order, Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.pictures.location import open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.serving.results import (
    CallWarning,
    GeneratedImage,
    Generation,
    Progress,
    Provenance,
    Timings,
)
from tests.support.loaded_models import order

DRAWN_BY = Provenance("m:1", "0" * 64, "eager", "fp32", "cpu", "2", (("vae_slicing", 0),), ())
TIMINGS = Timings(1, 2, 3, 4, 5, 15)


class FakeGenerator:
    """Draws 16 x 16 pictures, red as their seed; writes down what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, tuple[int, ...]]] = []
        self.provenances: list[Any] = [DRAWN_BY]
        self.threads: list[threading.Thread] = []
        self.error: Exception | None = None

    async def look_up_adapters(self, order: Order) -> None:
        self.looked_up = [lora.name for lora in order.params.loras]

    def resolve(self, order: Order) -> Resolved:
        if order.params.prompt == "wrong":
            raise InvalidInput("prompt", "wrong", "another one")
        seed = 77 if order.params.seed is None else order.params.seed
        decided = {"model": "m", "width": 16, "height": 16, "sampler": "euler", "seed": seed}
        params = ResolvedParams.model_validate(dict(order.params) | decided)
        return Resolved(order.task, params, order.pictures)

    def warnings(self, order: Resolved) -> tuple[CallWarning, ...]:
        self.threads.append(threading.current_thread())
        if order.params.prompt == "gone":
            raise ModelNotFound("m")
        return (CallWarning("prompt_truncated", "prompt", f"seed {order.params.seed}"),)

    def provenance(self, order: Resolved) -> Provenance:
        self.threads.append(threading.current_thread())
        last = self.provenances.pop(0) if len(self.provenances) > 1 else self.provenances[0]
        if isinstance(last, Exception):
            raise last
        assert isinstance(last, Provenance)
        return last

    async def draw(
        self,
        order: Resolved,
        *,
        request_id: str,
        on_progress: Any = None,
        skip: Collection[int] = (),
    ) -> Generation:
        if self.error is not None:
            raise self.error
        params = order.params
        self.calls.append((request_id, params.seed, tuple(sorted(skip))))
        if on_progress is not None:
            on_progress(Progress(request_id, 0, "base", 1, 1))
        images = tuple(
            GeneratedImage(
                Image.new("RGB", (16, 16), (params.seed + index, 0, 0)), params.seed + index, index
            )
            for index in range(params.num_images)
            if index not in skip
        )
        return Generation(request_id, order, images, TIMINGS)


class Setup:
    """A drawing over a store in a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        given = Settings(store=str(folder), **{"result_cache": True, **settings})
        self.generator = FakeGenerator()
        self.pictures = Pictures(given, open_store(given))
        self.looked_up: list[tuple[int, int]] = []
        self.drawing = Drawing(
            self.generator, given, self.pictures, lambda *counts: self.looked_up.append(counts)
        )  # type: ignore[arg-type]

    async def draw(self, control: CacheControl | None = None, **params: Any) -> Answer:
        options = {} if control is None else {"control": control}
        return await self.drawing.draw(order(**params), request_id="r", **options)

    async def metadata(self, answer: Answer, index: int = 0) -> dict[str, Any]:
        return await self.pictures.describe(str(answer.pictures[index].image_id))


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    setup.pictures.close()


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path, result_cache=False)
    yield setup
    setup.pictures.close()


async def test_warnings_of_drawn_and_of_cached_pictures(cached: Setup, plain: Setup) -> None:
    for setup in (cached, cached, plain):
        answer = await setup.draw(seed=5)
        assert [each.message for each in answer.warnings] == ["prompt: seed 5"]
    assert (await cached.draw(seed=5)).cached
    assert (await plain.draw(prompt="gone")).warnings == ()  # and the picture is answered


def reds(answer: Answer) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in answer.images()]  # type: ignore[index]


async def test_without_a_cache(plain: Setup) -> None:
    for _ in range(2):
        answer = await plain.draw(num_images=2)
        assert answer.cached is None
        assert [picture.cached for picture in answer.pictures] == [None, None]
        assert reds(answer) == [5, 6]
        assert answer.generation.timings == TIMINGS
        assert answer.order == answer.generation.order
    assert plain.generator.calls == [("r", 5, ())] * 2
    assert plain.looked_up == []
    described = await plain.metadata(answer)
    assert (described["drawn_by"]["model"], described["request_id"]) == ("m:1", "r")


async def test_the_second_time_nothing_is_drawn(cached: Setup) -> None:
    first, again = await cached.draw(num_images=2), await cached.draw(num_images=2)
    assert (first.cached, again.cached) == (False, True)
    assert cached.generator.calls == [("r", 5, ())]
    assert [picture.data for picture in first.pictures] == [
        picture.data for picture in again.pictures
    ]
    assert reds(again) == [5, 6]
    assert again.generation.images == ()
    assert again.generation.request_id == "r"
    timings = again.generation.timings
    assert 0 < timings.total_s < 30
    assert timings == Timings(0, 0, 0, 0, 0, timings.total_s)
    assert cached.looked_up == [(0, 2), (2, 0)]


async def test_only_what_is_missing_is_drawn_and_the_order_is_kept(cached: Setup) -> None:
    await cached.draw(seed=6)
    answer = await cached.draw(num_images=3)
    assert cached.generator.calls[-1] == ("r", 5, (1,))
    assert reds(answer) == [5, 6, 7]
    assert [picture.index for picture in answer.pictures] == [0, 1, 2]
    assert [picture.cached for picture in answer.pictures] == [False, True, False]
    assert answer.cached is False
    assert len(answer.generation.images) == 2
    assert cached.looked_up[-1] == (1, 2)
    assert (await cached.draw(num_images=3)).cached


async def test_a_random_seed_is_not_looked_up_but_kept(cached: Setup) -> None:
    for _ in range(2):
        assert (await cached.draw(seed=None)).cached is False
    assert cached.looked_up == []
    assert (await cached.draw(seed=77)).cached


async def test_a_caller_may_forbid_to_read_or_to_write(cached: Setup) -> None:
    assert (await cached.draw(CacheControl(write=False))).cached is False
    assert (await cached.draw()).cached is False
    assert (await cached.draw(CacheControl(write=False))).cached is True
    assert (await cached.draw(CacheControl(read=False))).cached is False
    assert cached.looked_up == [(0, 1), (0, 1), (1, 0)]


async def test_a_random_seed_changes_only_what_is_read(cached: Setup) -> None:
    await cached.draw(CacheControl(write=False), seed=None)
    assert (await cached.draw(seed=77)).cached is False


async def test_what_drew_is_asked_for_before_and_after(cached: Setup) -> None:
    other = replace(DRAWN_BY, torch="3")
    cached.generator.provenances = [DRAWN_BY, other, DRAWN_BY]
    answer = await cached.draw()
    assert (await cached.metadata(answer))["drawn_by"]["torch"] == "3"
    assert (await cached.draw()).cached is False  # it is unclear what the first was drawn by
    assert threading.main_thread() not in cached.generator.threads


@pytest.mark.parametrize("result_cache", [False, True])
async def test_a_picture_is_answered_even_if_it_cannot_be_told_what_drew_it(
    tmp_path: Path, result_cache: bool
) -> None:
    setup = Setup(tmp_path, result_cache=result_cache)
    gone = AdapterNotFound("striped")
    setup.generator.provenances = [DRAWN_BY, gone] if result_cache else [gone]
    answer = await setup.draw()
    assert (await setup.metadata(answer))["drawn_by"] is None
    setup.generator.provenances = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError):
        await setup.draw()
    setup.pictures.close()


async def test_before_drawing_an_unknown_adapter_is_an_error(cached: Setup) -> None:
    cached.generator.provenances = [AdapterNotFound("striped")]
    with pytest.raises(AdapterNotFound):
        await cached.draw()
    assert cached.generator.calls == []


async def test_what_is_refused_is_refused_with_and_without_a_cache(
    cached: Setup, plain: Setup
) -> None:
    for setup in (cached, plain):
        with pytest.raises(InvalidInput):
            await setup.draw(prompt="wrong")
        setup.generator.error = Overloaded("full", 1)
        with pytest.raises(Overloaded):
            await setup.draw()


@pytest.mark.parametrize("result_cache", [False, True])
async def test_progress_and_the_id_of_the_request(tmp_path: Path, result_cache: bool) -> None:
    setup = Setup(tmp_path, result_cache=result_cache)
    told: list[Progress] = []
    answer = await setup.drawing.draw(order(), on_progress=told.append)
    assert [each.stage for each in told] == ["base"]
    other = await setup.drawing.draw(order(seed=9))
    names = {each.generation.request_id for each in (answer, other)}
    assert len(names) == 2
    assert all(len(name) == 16 for name in names)
    assert told[0].request_id == answer.generation.request_id
    setup.pictures.close()


async def test_a_redrawn_picture_is_known_by_what_it_was_drawn_from(cached: Setup) -> None:
    async def redraw(sha256: str) -> Answer:
        source = InputImage(Image.new("RGB", (16, 16)), sha256)
        return await cached.drawing.draw(order("img2img", source))

    assert (await redraw("0" * 64)).cached is False
    assert (await redraw("1" * 64)).cached is False
    again = await redraw("0" * 64)
    assert again.cached is True
    assert again.order.image is not None


async def test_whoever_leaves_cancels_the_drawing(cached: Setup) -> None:
    begun, ended = asyncio.Event(), []

    async def draw(*_: Any, **__: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    cached.generator.draw = draw  # type: ignore[assignment,method-assign]
    drawing = asyncio.ensure_future(cached.draw())
    await begun.wait()
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert ended == [True]


async def test_a_cached_jpeg_is_read_from_its_file(cached: Setup) -> None:
    for _ in range(2):
        answer = await cached.draw(output_format="jpeg", seed=200)
        image = answer.images()[0]
        assert (image.size, image.mode) == ((16, 16), "RGB")
        assert abs(reds(answer)[0] - 200) < 8
    assert answer.cached
