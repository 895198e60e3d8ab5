"""The two tokenizers as written by training and as shipped."""

import random
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from export.embedded import WEIGHTS
from export.embedded.captions import vary_caption, words
from export.embedded.scenes import sample_scene
from export.embedded.tokenizer import BEGIN, END, LENGTH, byte_letters, load_both, save_both


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    save_both(folder)
    return load_both(folder)


def test_every_word_is_one_token(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    for word in words():
        if len(word) > 1 and word.isalpha():
            assert len(pair[0](word).input_ids) == 3, word


def test_captions_survive_a_round_trip(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    rng = random.Random(9)
    for _ in range(50):
        text = vary_caption(sample_scene(rng), rng).text
        numbers = pair[1](text).input_ids
        back = pair[1].decode(numbers, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_unknown_text_falls_back_to_bytes(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    numbers = pair[0]("Xylophone Ünï 中").input_ids
    assert pair[0].decode(numbers, skip_special_tokens=True) == "xylophone ünï 中"


def test_pads_differ_as_in_sdxl(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    for tokenizer, pad in zip(pair, (END, "!"), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(
            tokenizer("red", padding="max_length", max_length=LENGTH).input_ids
        )
        assert tokens[:4] == [BEGIN, "red</w>", END, pad]
        assert len(tokens) == LENGTH


def test_byte_letters_are_distinct() -> None:
    assert len(set(byte_letters())) == 256


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_the_shipped_tokenizers_are_the_written_ones(
    name: str, pair: tuple[CLIPTokenizer, CLIPTokenizer]
) -> None:
    shipped = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / name)
    fresh = pair[name == "tokenizer_2"]
    assert shipped.get_vocab() == fresh.get_vocab()
    assert shipped.pad_token == fresh.pad_token
