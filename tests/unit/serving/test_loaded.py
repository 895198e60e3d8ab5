"""What clients may know of a loaded model, and of the adapters of all models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdxl_bento.diffusion.model import Placement
from sdxl_bento.errors import NotReady
from sdxl_bento.manifest import BackendInfo, PipelineInfo, SizeLimits
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.registry import ModelRegistry
from sdxl_bento.serving.results import LoraSummary, ModelSummary
from tests.support.loaded_models import FakePool, loaded
from tests.support.manifests import manifest


def wide(base: PipelineInfo) -> PipelineInfo:
    return base.model_copy(update={"width": 192, "height": 96})


def registry(*models: Loaded, state: str = "ready") -> ModelRegistry:
    made = ModelRegistry(lambda: state)
    made.publish({model.name: model for model in models})
    return made


def test_a_summary_of_an_eager_model() -> None:
    limits = SizeLimits(multiple=16, min=32, max=256)
    described = manifest(base=wide(manifest().base), size_limits=limits)
    assert loaded(description=described).summary(default=True) == ModelSummary(
        name="tiny",
        tag="tiny:v1",
        default=True,
        default_width=192,
        default_height=96,
        size_multiple=16,
        has_refiner=False,
        dtype="float32",
        backend="eager",
        device="cpu",
        load_seconds=1.235,
        warm_up_seconds=0.988,
    )


def test_a_summary_of_a_compiled_model_with_a_refiner() -> None:
    info = BackendInfo(backend="inductor", device="cuda:9.0", dtype="fp16", versions={})
    placement = Placement(torch.device("cuda", 1), torch.float16, "cuda")
    summary = loaded(info=info, refiner=True, placement=placement).summary(default=False)
    assert summary.backend == "inductor-cuda90-fp16"
    assert (summary.dtype, summary.device) == ("float16", "cuda:1")
    assert summary.has_refiner
    assert not summary.default


def test_the_first_model_is_the_default_one() -> None:
    models = registry(loaded("a"), loaded("b"), loaded("c"))
    assert [each.name for each in models.summaries()] == ["a", "b", "c"]
    assert [each.default for each in models.summaries()] == [True, False, False]
    assert models.ready("a").default
    assert not models.ready("b").default
    assert models.ready("b").name == "b"
    assert bool(models)


def test_defaults_are_those_of_the_model() -> None:
    distilled = loaded("fast", description=manifest(name="fast", variant="turbo"))
    models = registry(loaded("plain"), distilled)
    assert models.defaults().num_inference_steps == 25
    assert models.defaults("fast").num_inference_steps == 4
    assert (models.defaults("fast").model, models.defaults().model) == ("fast", "plain")
    assert (models.defaults().seed, models.defaults().prompt) == (0, "")
    with pytest.raises(NotReady, match="loading"):
        registry(state="loading").defaults()


def test_adapters_of_all_models_by_name() -> None:
    first = loaded("a", pool=FakePool({"z": 1, "both": 20}, in_memory={"both"}, pinned={"z"}))
    second = loaded("b", pool=FakePool({"both": 30, "m": 4}, in_memory={"m"}, pinned={"both"}))
    assert registry(first, second).adapters() == [
        LoraSummary("both", ("a", "b"), 30, loaded=True, pinned=True),
        LoraSummary("m", ("b",), 4, loaded=True, pinned=False),
        LoraSummary("z", ("a",), 1, loaded=False, pinned=True),
    ]
    neither = replace(second, name="c")
    pool = neither.served.adapters
    pool.in_memory = ()  # type: ignore[attr-defined]
    assert not registry(neither).adapters()[0].loaded
    assert registry().adapters() == []


def test_few_of_many_skipped_tensors_are_listed() -> None:
    keys = tuple(f"{index}.diff_b" for index in range(25))
    some, none = (loaded(name, pool=FakePool({"x": 1}, skipped=skipped))
                  for name, skipped in (("a", keys), ("b", ())))  # fmt: skip
    [listed] = registry(some, none).adapters()
    assert listed.skipped == (*keys[:20], "and 5 more")


def test_notes_are_told_once() -> None:
    """What the export noted, and what is known of the scheduler in any case."""
    described = manifest(notes=("mind the step",))
    model = loaded(description=described)
    assert model.summary(default=True).notes == ("mind the step",)
    config = {**model.facts.base_scheduler, "_class_name": "PNDMScheduler"}
    model = replace(model, facts=replace(model.facts, base_scheduler=config))
    [step, note] = model.summary(default=True).notes
    assert "PNDMScheduler is no sampler here" in note
    again = replace(model.facts, manifest=manifest(notes=(note, step)))
    assert replace(model, facts=again).summary(default=True).notes == (note, step)
