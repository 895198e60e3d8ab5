"""Which prompts are encoded, and which are read from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sdxl_bento.diffusion.conditioning import Conditioner, Conditioning, PromptCache
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.plan import Job
from sdxl_bento.engine.request import Stage
from sdxl_bento.params import GenerateParams
from tests.support import loras
from tests.support.loras import mix

TOKENS = 16


class Tokenizer:
    """A letter is a token."""

    model_max_length = TOKENS

    def __call__(self, prompts: list[str], **_: object) -> SimpleNamespace:
        letters = [[ord(letter) % 60 for letter in prompt][: TOKENS - 1] for prompt in prompts]
        ids = [[*of, *[63] * (TOKENS - len(of))] for of in letters]  # 63 ends a prompt
        return SimpleNamespace(input_ids=torch.tensor(ids))


class Bench:
    """A conditioner over two tiny text encoders, and a pool with adapters for this and that."""

    def __init__(self, folder: Path) -> None:
        targets = loras.tiny_targets()
        encoders = [targets["text_encoder"], targets["text_encoder_2"]]
        info = SimpleNamespace(force_zeros_for_empty_prompt=False, requires_aesthetics_score=False)
        pipeline = SimpleNamespace(
            text_encoders=encoders, tokenizers=[Tokenizer(), Tokenizer()], info=info
        )
        placement = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
        model = SimpleNamespace(name="tiny", placement=placement, pipeline=lambda _: pipeline)
        made = {
            "paint": loras.factors(targets),
            "words": loras.factors(targets, unet="", clip=loras.CLIP),
        }
        files = {n: loras.write_peft(folder / f"{n}.safetensors", t) for n, t in made.items()}
        self.pool: LoraPool = loras.pool_of(targets, **files)
        self.cache = PromptCache(1 << 20)
        self._conditioner = Conditioner(cast(Any, model), self.pool, self.cache)

    @torch.no_grad()
    def condition(self, mixed: Mix = (), prompt: str = "a circle") -> Conditioning:
        params = GenerateParams(prompt=prompt, width=64, height=64)
        job = cast(Job, SimpleNamespace(params=params, stages=[Stage.BASE]))
        return self._conditioner.condition([job], [mixed])[0][Stage.BASE]


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
