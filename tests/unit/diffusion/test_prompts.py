"""What of a prompt the text encoders don't read, with the embedded model's tokenizers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from sdxl_bento.diffusion.prompts import unread
from sdxl_bento.diffusion.tokens import TokenCounter
from sdxl_bento.engine.request import Stage
from sdxl_bento.serving.planner import truncated
from tests.support.loaded_models import loaded, resolved

WEIGHTS = Path(__file__).resolve().parents[3] / "export" / "embedded" / "weights"
WORDS = "a red circle on a blue background, "
MODEL = loaded(refiner=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(WEIGHTS / "base" / "tokenizer")


@pytest.fixture(scope="module")
def counter(tokenizer: Any) -> TokenCounter:
    return TokenCounter(tokenizer)


@pytest.mark.parametrize(
    "text",
    ["", "a red circle", WORDS * 30, "x" * 4000, "ÄÖ 漢字 🎨 " * 40, "\n\t a\r\n" * 90, "🎨" * 100],
)
def test_the_rest_is_what_the_tokenizer_cuts_off(
    tokenizer: Any, counter: TokenCounter, text: str
) -> None:
    read = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids[1:-1]
    found = counter.unread("prompt", text)
    if found is None:
        assert tokenizer(text).input_ids[1:-1] == read
        return
    assert (found.field, found.read) == ("prompt", len(read))
    assert found.tokens == len(tokenizer(text).input_ids) - 2
    assert text.endswith(found.rest)
    assert counter.room == 75
    if text.startswith(WORDS):  # no letter is in two tokens
        kept = text[: len(text) - len(found.rest)]
        assert tokenizer(kept).input_ids[1:-1] == read


def test_the_last_token_that_is_read(counter: TokenCounter) -> None:
    fits = " ".join(["red"] * 75)
    assert counter.unread("prompt", fits) is None
    found = counter.unread("prompt", f"{fits} circle")
    assert found is not None
    assert found.rest.strip() == "circle"
    assert found.tokens == 76


def test_many_threads_may_count(tokenizer: Any, counter: TokenCounter) -> None:
    """While the engine's thread tokenizes with truncation, which changes its tokenizer."""

    def work(index: int) -> object:
        if index % 2:
            tokenizer(WORDS * 30, truncation=True, max_length=77 - index % 3, padding="max_length")
        return counter.unread("prompt", WORDS * 30)

    with ThreadPoolExecutor(4) as pool:
        assert len({repr(each) for each in pool.map(work, range(100))}) == 1


def fields_of(counter: TokenCounter, task: Any = "generate", **params: Any) -> list[str]:
    """The fields of which something is not read."""
    info = SimpleNamespace(force_zeros_for_empty_prompt=True)
    base = SimpleNamespace(info=info, counters=[counter, counter])
    refiner = SimpleNamespace(info=info, counters=[counter])
    pipelines = {Stage.BASE: base, Stage.REFINE: refiner}
    model: Any = SimpleNamespace(pipeline=lambda stage: pipelines[stage])
    order = resolved(MODEL, **params)
    return [each.field for each in unread(type(order)(task, order.params), model)]


def test_which_fields_are_read(counter: TokenCounter) -> None:
    long = WORDS * 30
    assert fields_of(counter, prompt="a") == []
    assert fields_of(counter, prompt=long) == ["prompt"]
    assert fields_of(counter, prompt="a", prompt_2=long) == ["prompt_2"]
    assert fields_of(counter, prompt=long, refiner=True) == ["prompt"]
    assert fields_of(counter, "refine", prompt=long) == ["prompt"]
    assert fields_of(counter, "refine", prompt="a", prompt_2=long) == []  # it has one encoder
    assert fields_of(counter, prompt="a", negative_prompt=long) == ["negative_prompt"]
    assert fields_of(counter, prompt="a", negative_prompt=long, guidance_scale=1) == []
    both = {"negative_prompt": "b", "negative_prompt_2": long}
    assert fields_of(counter, prompt=long, **both) == ["prompt", "negative_prompt_2"]
    assert fields_of(counter, prompt="a", negative_prompt_2=long) == []  # zeros stand for both


def test_the_warning(counter: TokenCounter) -> None:
    found = counter.unread("prompt", " ".join(["red"] * 75) + ' "a\nb"' + " c" * 500)
    assert found is not None
    warning = truncated(found)
    assert (warning.type, warning.field) == ("prompt_truncated", "prompt")
    assert warning.message.startswith(
        f"prompt: only the first 75 of its {found.tokens} tokens are read; this is not: "
    )
    assert r'"\"a\nb\" c c' in warning.message
    assert len(warning.message) < 500
