"""From an order to what is drawn: the model's defaults, this server's limits, what draws it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import torch
from PIL import Image

from sdxl_bento.config import Settings
from sdxl_bento.errors import AdapterNotFound, InvalidInput, ModelNotFound, NotReady
from sdxl_bento.manifest import BackendInfo
from sdxl_bento.order import InputImage
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.planner import Planner
from sdxl_bento.serving.registry import ModelRegistry
from tests.support.loaded_models import FakePool, loaded, order

INFO = BackendInfo(backend="onnx", device="cpu", dtype="bf16", versions={})


def planner(*models: Loaded, **settings: object) -> Planner:
    registry = ModelRegistry(lambda: "loading")
    registry.publish({model.name: model for model in models})
    return Planner(registry, Settings.model_validate(settings))


def test_the_named_model_decides_what_is_left_out() -> None:
    planned = planner(loaded("a"), loaded("b")).resolve(order(model="b:latest", width=64))
    assert planned.params.model == "b"
    assert (planned.params.width, planned.params.height) == (64, 128)
    assert (planned.params.sampler, planned.params.seed) == ("euler", 5)
    with pytest.raises(ModelNotFound, match="available: a, b"):
        planner(loaded("a"), loaded("b")).resolve(order(model="c"))


def test_each_call_without_a_seed_gets_another() -> None:
    plans = planner(loaded())
    seeds = {plans.resolve(order(seed=None)).params.seed for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) < 2**32  # so that it also fits other programs' fields
    assert max(seeds) > 2**24


def test_before_a_model_is_loaded() -> None:
    with pytest.raises(NotReady, match="loading"):
        planner().resolve(order())


def test_every_adapter_has_to_be_known() -> None:
    plans = planner(loaded(pool=FakePool({"striped": 1, "dots": 2})))
    known = [{"name": "dots"}, {"name": "striped", "scale": 0.5}]
    assert len(plans.resolve(order(loras=known)).params.loras) == 2
    with pytest.raises(AdapterNotFound, match="no LoRA named 'wavy'; available: dots, striped"):
        plans.resolve(order(loras=[{"name": "dots"}, {"name": "wavy"}]))


@pytest.mark.parametrize(
    ("limit", "field", "fits", "exceeds"),
    [
        ({"max_steps": 30}, "num_inference_steps", {"num_inference_steps": 30},
         {"num_inference_steps": 31}),
        ({"max_images": 3}, "num_images", {"num_images": 3}, {"num_images": 4}),
        ({"max_pixels": 128 * 64}, "width x height", {"height": 64}, {"height": 96}),
        ({"max_queue": 2, "max_running": 1}, "num_images", {"num_images": 3}, {"num_images": 4}),
        ({"max_queue_megapixels": 0.04, "max_running": 1}, "num_images", {"num_images": 3},
         {"num_images": 4}),
    ],
)  # fmt: skip
def test_a_server_may_allow_less_than_the_api(
    limit: dict[str, Any], field: str, fits: dict[str, int], exceeds: dict[str, int]
) -> None:
    plans = planner(loaded(), **limit)
    plans.resolve(order(**fits))
    with pytest.raises(InvalidInput, match=r"at most .* on this server") as caught:
        plans.resolve(order(**exceeds))
    assert caught.value.field == field
    most = {
        "num_inference_steps": "30",
        "num_images": "3 of 128 x 128" if "max_running" in limit else "3",
        "width x height": "8192 pixels",
    }
    assert caught.value.allowed == f"at most {most[field]} on this server"
    shown = "128 x 96" if field == "width x height" else exceeds[field]
    assert caught.value.value == shown


def test_a_picture_that_would_be_drawn_too_large() -> None:
    """Its nearest size may be over the limit, even where the picture itself is not."""
    source = InputImage.of(Image.new("RGB", (127, 65)), b"")
    plans = planner(loaded(), max_pixels=128 * 64 - 1)
    with pytest.raises(InvalidInput, match="would be drawn at 128x64") as caught:
        plans.resolve(order("img2img", source))
    assert (caught.value.field, caught.value.value) == ("image", "127x65")
    with pytest.raises(InvalidInput) as caught:
        plans.resolve(order("img2img", source, width=128, height=64))
    assert (caught.value.field, caught.value.value) == ("width x height", "128 x 64")


def test_the_job_is_of_the_orders_model() -> None:
    plans = planner(loaded("plain"), loaded("both", refiner=True))
    wanted = plans.resolve(order(model="both", refiner=True, num_inference_steps=10))
    job = plans.plan(wanted, wants_preview=True)
    assert [str(stage) for stage in job.stages] == ["base", "refine"]
    assert job.order == wanted.single(0)
    assert job.wants_preview
    assert not plans.plan(wanted).wants_preview
    with pytest.raises(InvalidInput, match="the model plain has no refiner"):
        plans.plan(wanted.with_params(model="plain"))


def test_provenance_names_all_that_pixels_depend_on() -> None:
    pool = FakePool({"striped": 1, "dots": 2})
    model = loaded(pool=pool, info=INFO)
    plans = planner(model, vae_slicing=True, vae_tile_pixels=5000)
    wanted = plans.resolve(order(loras=[{"name": "striped"}]))
    provenance = plans.provenance(wanted)
    assert (provenance.model, provenance.backend) == ("tiny:v1", "onnx-cpu-bf16")
    assert (provenance.dtype, provenance.device) == ("float32", "cpu")
    assert provenance.torch == torch.__version__
    written = model.served.model.manifest.model_dump_json().encode()
    assert provenance.artifact == sha256(written).hexdigest()
    assert provenance.loras == (("striped", "hash of striped"),)
    assert dict(provenance.options) == {
        "vae_tile_pixels": 5000, "attention_slicing": 0, "vae_slicing": 1,
    }  # fmt: skip


def test_provenance_of_an_eager_model_and_of_an_adapter_that_is_gone() -> None:
    pool = FakePool({"striped": 1})
    plans = planner(loaded(pool=pool))
    wanted = plans.resolve(order(loras=[{"name": "striped"}]))
    assert plans.provenance(wanted).backend == "eager"
    pool.sizes = {}
    with pytest.raises(AdapterNotFound):
        plans.provenance(wanted)


def test_provenance_is_of_the_named_model() -> None:
    plans = planner(loaded("a"), replace(loaded("b"), info=INFO))
    assert plans.provenance(plans.resolve(order(model="b"))).model == "b:v1"
