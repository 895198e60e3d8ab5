"""Which prompts are encoded, and which are read from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sdxl_bento.diffusion.conditioning import (
    Conditioner,
    Conditioning,
    Encoded,
    PromptCache,
    Text,
    time_ids,
)
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.plan import Job
from sdxl_bento.engine.request import Stage
from sdxl_bento.params import GenerateParams
from tests.support import loras
from tests.support.loras import mix, wait_ready

TOKENS = 16


class Tokenizer:
    """A letter is a token."""

    model_max_length = TOKENS

    def __call__(self, prompts: list[str], **_: object) -> SimpleNamespace:
        letters = [[ord(letter) % 60 for letter in prompt][: TOKENS - 1] for prompt in prompts]
        ids = [[*of, *[63] * (TOKENS - len(of))] for of in letters]  # 63 ends a prompt
        return SimpleNamespace(input_ids=torch.tensor(ids))


class Bench:
    """A conditioner over two tiny text encoders, and a pool with adapters for this and that.

    The refiner is the second encoder alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        targets = loras.tiny_targets()
        encoders = [targets["text_encoder"], targets["text_encoder_2"]]
        info = SimpleNamespace(force_zeros_for_empty_prompt=False, requires_aesthetics_score=False)
        pipeline = SimpleNamespace(
            text_encoders=encoders, tokenizers=[Tokenizer(), Tokenizer()], info=info
        )
        self.info = info
        refiner = SimpleNamespace(
            text_encoders=encoders[1:],
            tokenizers=[Tokenizer()],
            info=SimpleNamespace(
                force_zeros_for_empty_prompt=False, requires_aesthetics_score=True
            ),
        )
        placement = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
        pipelines = {Stage.BASE: pipeline, Stage.REFINE: refiner}
        model = SimpleNamespace(
            name="tiny", placement=placement, pipeline=lambda stage: pipelines[stage]
        )
        made = {
            "paint": loras.factors(targets),
            "words": loras.factors(targets, unet="", clip=loras.CLIP),
        }
        files = {n: loras.write_peft(folder / f"{n}.safetensors", t) for n, t in made.items()}
        self.pool: LoraPool = loras.pool_of(targets, **files)
        self.cache = PromptCache(1 << 20)
        self._conditioner = Conditioner(cast(Any, model), self.pool, self.cache)

    def condition(
        self, mixed: Mix = (), prompt: str = "a circle", stage: Stage = Stage.BASE, **fields: Any
    ) -> Conditioning:
        params = GenerateParams(prompt=prompt, width=64, height=64, **fields)
        return self.condition_all([(params, mixed)], stage)[0]

    @torch.no_grad()
    def condition_all(
        self, asked: list[tuple[GenerateParams, Mix]], stage: Stage = Stage.BASE
    ) -> list[Conditioning]:
        jobs = [cast(Job, SimpleNamespace(params=params, stages=[stage])) for params, _ in asked]
        done = self._conditioner.condition(jobs, [mixed for _, mixed in asked])
        return [stages[stage] for stages in done]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.pool.close()


def test_an_adapter_of_the_unet_alone_encodes_nothing_anew(bench: Bench) -> None:
    plain = bench.condition()
    encoded = bench.cache.misses
    assert encoded == 2  # the prompt and the negative one
    painted = bench.condition(mix(paint=1.0))
    assert bench.cache.misses == encoded
    assert torch.equal(painted.embeddings, plain.embeddings)


def test_an_adapter_of_the_text_encoders_has_prompts_of_its_own(bench: Bench) -> None:
    plain, worded = bench.condition(), bench.condition(mix(words=1.0))
    stronger = bench.condition(mix(words=2.0))
    assert (worded.embeddings - plain.embeddings).abs().max() > 1e-3
    assert (worded.pooled - plain.pooled).abs().max() > 1e-3
    assert (worded.embeddings - stronger.embeddings).abs().max() > 1e-3
    assert bench.cache.misses == 6


def test_what_an_adapter_of_the_unet_is_mixed_with_keeps_its_prompts(bench: Bench) -> None:
    worded = bench.condition(mix(words=1.0))
    encoded = bench.cache.misses
    both = bench.condition(mix(paint=0.5, words=1.0))
    assert bench.cache.misses == encoded
    assert torch.equal(both.embeddings, worded.embeddings)


def test_an_adapter_that_was_replaced_encodes_anew(bench: Bench) -> None:
    """Its name and its scale stay, so only the file's content tells."""
    before = bench.condition(mix(words=1.0))
    other = loras.factors(loras.tiny_targets(), unet="", clip=loras.CLIP, seed=7)
    loras.write_peft(bench.folder / "words.safetensors", other)
    bench.pool.release(["words"])
    bench.pool.scan(bench.folder)
    wait_ready(bench.pool, ["words"])
    after = bench.condition(mix(words=1.0))
    assert (after.embeddings - before.embeddings).abs().max() > 1e-3


def test_the_refiner_reads_prompts_without_adapters(bench: Bench) -> None:
    plain = bench.condition(stage=Stage.REFINE)
    worded = bench.condition(mix(words=1.0), stage=Stage.REFINE)
    assert torch.equal(worded.embeddings, plain.embeddings)
    assert torch.equal(worded.pooled, plain.pooled)
    assert bench.cache.misses == 2
    assert plain.embeddings.shape[-1] == 16, "one encoder"
    assert bench.condition().embeddings.shape[-1] == 32, "two"


def test_the_two_stages_share_no_entry(bench: Bench) -> None:
    """Whatever the second encoder's own prompts are."""
    base, refiner = bench.condition(), bench.condition(stage=Stage.REFINE)
    assert bench.cache.misses == 4
    assert base.embeddings.shape != refiner.embeddings.shape


def test_several_requests_get_what_each_gets_alone(bench: Bench) -> None:
    texts = ["a circle", "a square", "a circle"]
    asked = [(GenerateParams(prompt=t, width=64, height=64), mix(words=1.0)) for t in texts]
    asked[2] = (asked[2][0], ())
    together = bench.condition_all(asked)
    assert (bench.cache.hits, bench.cache.misses) == (0, 5)  # two share the negative one
    bench.cache = bench._conditioner.cache = PromptCache(0)
    for (params, mixed), found in zip(asked, together, strict=True):
        alone = bench.condition_all([(params, mixed)])[0]
        assert torch.equal(found.embeddings, alone.embeddings), "to the bit"
        assert torch.equal(found.pooled, alone.pooled)
    assert bench.cache.nbytes == 0


def test_each_encoder_reads_its_own_prompts(bench: Bench) -> None:
    """The first half of an embedding is the first encoder's; pooled is the second's."""
    same = bench.condition(prompt="a", negative_prompt="b")
    other = bench.condition(prompt="a", prompt_2="c", negative_prompt="b", negative_prompt_2="d")
    assert torch.equal(same.embeddings[..., :16], other.embeddings[..., :16])
    for row in (0, 1):
        assert not torch.equal(same.embeddings[row, :, 16:], other.embeddings[row, :, 16:])
        assert not torch.equal(same.pooled[row], other.pooled[row])
    swapped = bench.condition(prompt="b", negative_prompt="a")
    assert torch.equal(swapped.embeddings, same.embeddings.flip(0)), "negative first"


def test_zeros_stand_for_a_negative_prompt_that_is_unset(bench: Bench) -> None:
    encoded = bench.condition()
    assert encoded.embeddings[0].any()
    bench.info.force_zeros_for_empty_prompt = True
    unset, empty = bench.condition(), bench.condition(negative_prompt="")
    assert not unset.embeddings[0].any()
    assert not unset.pooled[0].any()
    assert torch.equal(unset.embeddings[1], encoded.embeddings[1])
    assert torch.equal(empty.embeddings, encoded.embeddings)


def test_without_guidance_there_is_one_row(bench: Bench) -> None:
    both, one = bench.condition(), bench.condition(guidance_scale=1.0)
    assert both.embeddings.shape[0] == both.pooled.shape[0] == both.time_ids.shape[0] == 2
    assert torch.equal(one.embeddings, both.embeddings[1:])
    assert torch.equal(one.pooled, both.pooled[1:])
    assert torch.equal(one.time_ids, both.time_ids[1:])


SIZES = {
    "original_size": (1, 2),
    "crops_coords_top_left": (3, 4),
    "target_size": (5, 6),
    "negative_original_size": (7, 8),
    "negative_crops_coords_top_left": (9, 10),
    "negative_target_size": (11, 12),
}
PLAIN = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("absent", "negative", "positive"),
    [
        ((), [7, 8, 9, 10, 11, 12], PLAIN),
        # As in diffusers, the negative branch differs only where both of its sizes are set.
        (("negative_original_size",), PLAIN, PLAIN),
        (("negative_target_size",), PLAIN, PLAIN),
        (tuple(SIZES), [96, 64, 0, 0, 96, 64], [96, 64, 0, 0, 96, 64]),
        (("original_size", "negative_original_size"), [96, 64, 3, 4, 5, 6], [96, 64, 3, 4, 5, 6]),
        (("target_size", "negative_target_size"), [1, 2, 3, 4, 96, 64], [1, 2, 3, 4, 96, 64]),
    ],
)
def test_time_ids_of_the_base_model(
    absent: tuple[str, ...], negative: list[float], positive: list[float]
) -> None:
    fields: dict[str, Any] = {name: size for name, size in SIZES.items() if name not in absent}
    params = GenerateParams(prompt="a", height=96, width=64, **fields)
    pipeline: Any = SimpleNamespace(info=SimpleNamespace(requires_aesthetics_score=False))
    assert time_ids(params, pipeline) == [negative, positive]


@pytest.mark.parametrize(
    ("absent", "negative", "positive"),
    [
        ((), [7, 8, 9, 10, 2], [1, 2, 3, 4, 7]),
        (("negative_original_size",), [1, 2, 9, 10, 2], [1, 2, 3, 4, 7]),
        (tuple(SIZES), [96, 64, 0, 0, 2], [96, 64, 0, 0, 7]),
    ],
)
def test_time_ids_of_the_refiner(
    absent: tuple[str, ...], negative: list[float], positive: list[float]
) -> None:
    """The aesthetic score stands where the base model has its target size."""
    fields: dict[str, Any] = {name: size for name, size in SIZES.items() if name not in absent}
    scores: dict[str, Any] = {"aesthetic_score": 7.0, "negative_aesthetic_score": 2.0}
    params = GenerateParams(prompt="a", height=96, width=64, **fields, **scores)
    pipeline: Any = SimpleNamespace(info=SimpleNamespace(requires_aesthetics_score=True))
    assert time_ids(params, pipeline) == [negative, positive]


def text(prompt: str) -> Text:
    return Text("m", Stage.BASE, (prompt,), (), "")


def entry(numbers: int) -> Encoded:
    return Encoded(torch.zeros(numbers - 1), torch.zeros(1))  # four bytes each


def test_the_cache_is_bounded_by_bytes_and_forgets_the_least_recently_used() -> None:
    cache = PromptCache(40)
    for prompt in "ab":
        cache.put(text(prompt), entry(5))
    assert cache.nbytes == 40
    assert cache.get(text("a")) is not None  # b is now the older one
    cache.put(text("c"), entry(1))
    assert cache.get(text("b")) is None
    assert cache.get(text("a")) is not None
    assert cache.get(text("c")) is not None
    assert cache.nbytes == 24
    assert (cache.hits, cache.misses) == (3, 1)


def test_an_entry_as_large_as_the_cache_is_kept_and_a_larger_one_is_not() -> None:
    cache = PromptCache(40)
    cache.put(text("large"), entry(11))
    assert cache.get(text("large")) is None
    cache.put(text("whole"), entry(10))
    assert cache.get(text("whole")) is not None
    cache.put(text("whole"), entry(2))
    assert cache.nbytes == 40, "what is there is not replaced"
    cache.put(text("large"), entry(11))
    assert cache.get(text("whole")) is not None, "nor driven out for nothing"
