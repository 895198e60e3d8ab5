"""The native calls over a store in a folder, with the result cache on and an engine of one line."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY

from sdxl_bento.config import Settings
from sdxl_bento.drawing import Answer
from sdxl_bento.errors import (
    AdapterNotFound,
    InvalidInput,
    Overloaded,
    StoreUnavailable,
)
from sdxl_bento.order import InputImage, Order, Resolved, Task
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.cache import key_of
from sdxl_bento.pictures.encode import encode
from sdxl_bento.pictures.location import open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.protocols.http.answers import answer_headers
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call, cache_control
from sdxl_bento.protocols.http.caller import Caller
from sdxl_bento.protocols.native.answers import answer_json
from sdxl_bento.serving.metrics import metrics
from sdxl_bento.serving.results import GeneratedImage, Generation, Provenance, Timings

DRAWN_BY = Provenance("m:1", "0" * 64, "eager", "fp32", "cpu", "2", (("vae_slicing", 0),), ())
BODY = {"prompt": "a red circle", "seed": 5}


class Engine:
    """Counts what it draws. Each picture has a colour of its own, however often it is drawn."""

    def __init__(self) -> None:
        self.models = self
        self.drawn: list[int] = []
        self.drawn_by = DRAWN_BY
        self.next_seed = 100
        self.full = False
        self.steps_off = 0
        self.meanwhile = lambda: None

    def name_of(self, asked: object) -> str:
        return "m"

    def sides(self) -> None:
        return None

    def warnings(self, order: Resolved) -> tuple[()]:
        return ()

    async def look_up_adapters(self, order: Order) -> None:
        pass

    def resolve(self, order: Order) -> Resolved:
        params, image = order.params, order.image
        size = image.size if image is not None else (params.width or 16, params.height or 16)
        if params.seed is None:
            self.next_seed += 1
        seed = self.next_seed if params.seed is None else params.seed
        filled = {"model": "m", "width": size[0], "height": size[1], "seed": seed}
        filled["sampler"] = params.sampler or "euler"
        resolved = ResolvedParams.model_construct(**{**dict(params), **filled})
        return Resolved(order.task, resolved, order.pictures)

    def provenance(self, order: Resolved) -> Provenance:
        return self.drawn_by

    async def draw(
        self,
        order: Resolved,
        *,
        request_id: str,
        on_progress: Any = None,
        skip: Collection[int] = (),
    ) -> Generation:
        if self.full:
            raise Overloaded("the queue is full", 1)
        params = order.params
        steps = params.num_inference_steps - self.steps_off
        images = []
        for index in range(params.num_images):
            if index in skip:
                continue
            seed = params.seed + index
            self.drawn.append(seed)
            picture = Image.new("RGB", (params.width, params.height), (seed, 9, 200))
            images.append(GeneratedImage(picture, seed, index, steps))
        self.meanwhile()
        order = order.with_params(num_inference_steps=steps)
        return Generation(request_id, order, tuple(images), Timings(0.1, 0, 1, 0, 0.1, 1.2))


class Setup:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.engine = Engine()
        self.now = time.time()
        given = Settings(store=str(folder), **({"result_cache": True} | settings))
        self.store = open_store(given)
        self.store._clock = lambda: self.now
        self.pictures = Pictures(given, self.store)
        self.api = API(self.engine, given, self.pictures, metrics())  # type: ignore[arg-type]

    async def call(self, cache: str = "", task: Task = "generate", **body: Any) -> Answer:
        control = cache_control({"cache-control": cache})
        caller = Caller(asyncio.Event().wait)  # type: ignore[arg-type]  # never leaves
        call = Call("r-1", False, BODY | body, caller, cache=control)
        try:
            return await self.api.run(call, task)
        finally:
            caller._left.cancel()

    async def twice(self, *args: Any, **body: Any) -> tuple[Answer, Answer]:
        return await self.call(*args, **body), await self.call(*args, **body)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.pictures.close()


def results(setup: Setup) -> list[str]:
    return setup.store._find("results")


def cached(answer: Answer) -> str | None:
    return answer_headers(answer).get("X-Cache")


def data(answer: Answer) -> list[bytes]:
    return [picture.data for picture in answer.pictures]


async def test_the_same_call_is_answered_with_the_same_bytes(setup: Setup) -> None:
    first, again = await setup.twice()
    assert setup.engine.drawn == [5]
    assert data(first) == data(again)
    assert (cached(first), cached(again)) == ("miss", "hit")
    headers, fresh = answer_headers(again), answer_headers(first)
    assert headers.keys() == fresh.keys()
    for name in ("X-Seed", "X-Image-Id", "X-Model", "X-Request-Id"):
        assert headers[name] == fresh[name]
    json_first, json_again = answer_json(first), answer_json(again)
    assert json_first["params"] == json_again["params"]
    assert [each["images"][0].pop("cache") for each in (json_first, json_again)] == ["miss", "hit"]
    assert json_first["images"] == json_again["images"]
    assert [image.size for image in again.images()] == [(16, 16)]


async def test_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    setup = Setup(tmp_path, result_cache=False)
    answers = await setup.twice()
    assert setup.engine.drawn == [5, 5]
    assert [cached(each) for each in answers] == [None, None]
    assert "cache" not in answer_json(answers[1])["images"][0]
    assert not results(setup)
    setup.pictures.close()


async def test_a_call_without_a_seed_is_drawn_and_can_be_had_again(setup: Setup) -> None:
    answers = await setup.twice(seed=None)
    assert len(set(setup.engine.drawn)) == 2
    assert [cached(each) for each in answers] == ["miss", "miss"]
    again = await setup.call(seed=answers[0].pictures[0].seed)
    assert (cached(again), data(again)) == ("hit", data(answers[0]))


async def test_each_picture_of_a_call_has_its_own_entry(setup: Setup) -> None:
    await setup.call(seed=6)
    answer = await setup.call(num_images=3)
    assert setup.engine.drawn == [6, 5, 7]
    assert cached(answer) == "miss"
    assert [picture.seed for picture in answer.pictures] == [5, 6, 7]
    assert [picture.cached for picture in answer.pictures] == [False, True, False]
    colours = [image.getpixel((0, 0))[0] for image in answer.images()]  # type: ignore[index]
    assert colours == [5, 6, 7]
    assert cached(await setup.call(num_images=2, seed=6)) == "hit"
    assert len(setup.engine.drawn) == 3


async def test_cache_control(setup: Setup) -> None:
    await setup.call("no-store")
    assert cached(await setup.call()) == "miss"
    assert cached(await setup.call("no-store")) == "hit"
    old = (await setup.call()).pictures[0].image_id
    setup.now += 1
    refreshed = await setup.call("No-Cache, foo")
    assert cached(refreshed) == "miss"
    assert (await setup.call()).pictures[0].image_id == refreshed.pictures[0].image_id != old
    assert cached(await setup.call("max-age=0")) == "miss"
    assert setup.engine.drawn == [5] * 4


async def test_an_overloaded_engine_is_not_asked(setup: Setup) -> None:
    await setup.call()
    setup.engine.full = True
    assert cached(await setup.call()) == "hit"
    with pytest.raises(Overloaded):
        await setup.call(seed=6)


async def test_fewer_steps_are_not_kept_as_all_of_them(setup: Setup) -> None:
    setup.engine.steps_off = 3
    body = {"slo_ms": 9000, "degrade_min_steps": 5}
    degraded = await setup.call(**body)
    assert degraded.generation.params.num_inference_steps == 22
    note = setup.store.describe(str(degraded.pictures[0].image_id))
    assert note["params"]["num_inference_steps"] == 22
    setup.engine.steps_off = 0
    assert cached(await setup.call(**body)) == "miss"
    assert cached(await setup.call(**body)) == "hit"
    assert cached(await setup.call()) == "hit"  # a deadline is not part of the key


async def test_adapters_that_may_come_late_are_not_kept(setup: Setup) -> None:
    loras = [{"name": "striped"}]
    answers = await setup.twice(loras=loras, lora_late_ok=True)
    assert [cached(each) for each in answers] == ["miss", "miss"]
    answers = await setup.twice(lora_late_ok=True)  # there are none
    assert [cached(each) for each in answers] == ["miss", "hit"]


async def test_a_replaced_adapter_never_answers_from_the_old_one(setup: Setup) -> None:
    loras = [{"name": "striped"}]
    old = replace(DRAWN_BY, loras=(("striped", "a" * 64),))
    new = replace(DRAWN_BY, loras=(("striped", "b" * 64),))

    def replaced() -> None:
        setup.engine.drawn_by = new

    setup.engine.drawn_by = old
    setup.engine.meanwhile = replaced  # before it was loaded
    await setup.call(loras=loras)
    assert cached(await setup.call(loras=loras)) == "miss"
    setup.engine.drawn_by = old
    assert cached(await setup.call(loras=loras)) == "miss"


async def test_what_has_drawn_need_not_be_known(setup: Setup) -> None:
    def gone(order: Resolved) -> Provenance:
        raise AdapterNotFound("striped")

    def removed() -> None:
        setup.engine.provenance = gone  # type: ignore[method-assign]

    setup.engine.meanwhile = removed
    answer = await setup.call()
    note = setup.store.describe(str(answer.pictures[0].image_id))
    assert note["drawn_by"] is None
    assert not results(setup)


async def test_a_picture_in_is_part_of_the_key(setup: Setup) -> None:
    red, blue = (encode(Image.new("RGB", (16, 8), name), "png") for name in ("red", "blue"))
    image_id = setup.store.put(red, "png", {})
    first = await setup.call(task="img2img", image=red)
    assert cached(await setup.call(task="img2img", image_id=image_id)) == "hit"
    for task, image in (("img2img", blue), ("refine", red)):
        assert cached(await setup.call(task=task, image=image)) == "miss"
    assert cached(await setup.call(task="img2img", image=red, strength=0.4)) == "miss"
    note = setup.store.describe(str(first.pictures[0].image_id))
    assert (note["task"], note["source"]["image_id"]) == ("img2img", None)
    again = await setup.call("no-cache", task="img2img", image_id=image_id)
    note = setup.store.describe(str(again.pictures[0].image_id))
    assert note["source"]["image_id"] == image_id


async def test_an_id_is_good_for_half_of_the_stores_time(setup: Setup) -> None:
    first = await setup.call()
    setup.now += setup.store.ttl_s / 2 - 2
    assert (await setup.call()).pictures[0].image_id == first.pictures[0].image_id
    setup.now += 4
    later = await setup.call()
    assert (cached(later), data(later)) == ("hit", data(first))
    setup.now += setup.store.ttl_s / 2  # the first is gone
    again = await setup.call()
    assert (cached(again), data(again)) == ("hit", data(first))
    assert setup.engine.drawn == [5]
    note = setup.store.describe(str(again.pictures[0].image_id))
    assert note["params"]["seed"] == 5


async def test_an_old_id_will_do_if_a_new_one_cannot_be_had(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await setup.call()
    setup.now += setup.store.ttl_s / 2 + 2

    def fail(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(setup.store, "put", fail)
    again = await setup.call()
    assert cached(again) == "hit"
    assert again.pictures[0].image_id == first.pictures[0].image_id
    assert data(again) == data(first)


async def test_what_is_gone_is_drawn_again(setup: Setup) -> None:
    first = await setup.call()
    (Path(setup.store._root) / f"{first.pictures[0].image_id}.png").unlink()
    assert cached(await setup.call()) == "miss"
    setup.now += setup.store.ttl_s + 1
    assert cached(await setup.call()) == "miss"


async def test_a_store_that_fails_loses_no_picture(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("pipe_file", "find"):
        monkeypatch.setattr(setup.store._files, name, fail)
    with caplog.at_level("WARNING", "bentoml.sdxl_bento"):
        answer = await setup.call(num_images=2)
    # The look-ups were two failures in a row, so storing is not even tried; one line says so.
    assert "the result cache is not used for this call: the disk is on fire" in caplog.text
    assert "request r-1: a picture could not be stored: it is left alone until" in caplog.text
    assert "(the disk is on fire)" in caplog.text
    assert caplog.text.count("could not be stored") == 1
    assert [Image.open(io.BytesIO(each)).size for each in data(answer)] == [(16, 16)] * 2
    assert "X-Image-Id" not in answer_headers(answer)
    described = answer_json(answer)
    assert described["id"] is None
    assert [each["image_id"] for each in described["images"]] == [None, None]


def fail(*args: object, **kwargs: object) -> None:
    raise OSError("the disk is on fire")


async def test_a_store_that_hangs_holds_up_no_answer(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup.pictures.timeout_s = 0.05
    release = threading.Event()
    for name in ("pipe_file", "find"):
        monkeypatch.setattr(setup.store._files, name, lambda *_, **__: release.wait(20))
    with caplog.at_level("WARNING", "bentoml.sdxl_bento"):
        answer = await setup.call()
    assert answer.pictures[0].image_id is None
    assert answer.pictures[0].data
    assert "the result cache is not used for this call: no answer within 0.05 s" in caplog.text
    assert "could not be stored: no answer within 0.05 s" in caplog.text
    release.set()


async def test_wrong_parameters_are_wrong_with_a_cache_too(setup: Setup) -> None:
    with pytest.raises(InvalidInput):
        await setup.call(width=3)


def test_calls_are_counted(setup: Setup) -> None:
    def count(result: str) -> float:
        return REGISTRY.get_sample_value("sdxl_result_cache_total", {"result": result}) or 0

    async def calls() -> None:
        await setup.call()
        await setup.call(num_images=3)
        await setup.call(seed=None)
        await setup.call("no-cache")

    before = count("hits"), count("misses")
    asyncio.run(calls())
    assert (count("hits") - before[0], count("misses") - before[1]) == (1, 3)


# The key

PARAMS = ResolvedParams(
    prompt="a", model="m", width=64, height=64, seed=5, sampler="euler", refiner=True,
    loras=({"name": "x"},), output_format="jpeg",
)  # fmt: skip
OTHER: dict[str, Any] = {
    "prompt": "b", "prompt_2": "b", "negative_prompt": "", "negative_prompt_2": "b", "model": "n",
    "width": 72, "height": 72, "num_inference_steps": 9, "guidance_scale": 3.0,
    "guidance_rescale": 0.5, "seed": 6, "sampler": "ddim", "strength": 0.5, "refiner": False,
    "high_noise_frac": 0.7, "aesthetic_score": 5.0, "negative_aesthetic_score": 1.0,
    "original_size": (8, 8), "target_size": (8, 8), "crops_coords_top_left": (1, 1),
    "negative_original_size": (8, 8), "negative_target_size": (8, 8),
    "negative_crops_coords_top_left": (1, 1), "loras": [{"name": "x", "scale": 0.5}],
    "lora_late_ok": True, "output_format": "webp", "output_quality": 80,
    "slo_ms": 9.0, "priority": 3, "degrade_min_steps": 3, "num_images": 2,
}  # fmt: skip
ALIKE = {"slo_ms", "priority", "degrade_min_steps"}
FILE = {"embed_metadata": True, "png_level": 1}


def key(params: ResolvedParams = PARAMS, task: Any = "img2img", **other: Any) -> str:
    source = InputImage(Image.new("RGB", (1, 1)), other.get("source", "0" * 64))
    order = Resolved(task, params, {"image": source})
    return key_of(order, other.get("provenance", DRAWN_BY), other.get("file", FILE))


def test_every_parameter_is_part_of_the_key_or_known_not_to_be() -> None:
    assert OTHER.keys() == GenerateParams.model_fields.keys()
    for name, value in OTHER.items():
        update = {name: value} | ({"slo_ms": 9.0} if name == "degrade_min_steps" else {})
        params = ResolvedParams.model_validate(PARAMS.model_dump() | update)
        assert (key(params) == key()) == (name in ALIKE), name


def test_what_draws_and_how_it_is_encoded_is_part_of_the_key() -> None:
    for name in Provenance.__slots__:
        value = (("other", "1"),) if name in ("options", "loras") else "other"
        assert key(provenance=replace(DRAWN_BY, **{name: value})) != key(), name
    assert key(source="1" * 64) != key()
    assert key(file=FILE | {"embed_metadata": False}) != key()
    assert key(task="refine") != key() != key(task="generate")


def test_what_cannot_matter_is_not_part_of_the_key() -> None:
    plain = PARAMS.model_copy(update={"refiner": False, "output_format": "png", "loras": ()})
    unused = {"strength": 0.9, "high_noise_frac": 0.1, "aesthetic_score": 1.0}
    unused |= {"output_quality": 5, "lora_late_ok": True}
    assert key(plain.model_copy(update=unused), "generate") == key(plain, "generate")
    two = [{"name": "x"}, {"name": "y"}]
    both = [
        ResolvedParams.model_validate(PARAMS.model_dump() | {"loras": loras})
        for loras in (two, two[::-1])
    ]
    assert key(both[0]) == key(both[1])
