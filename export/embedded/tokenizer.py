"""A byte-pair encoding in CLIP's file format in which every word of the captions is one token."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from export.embedded.captions import words

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"tokenizer": END, "tokenizer_2": "!"}
"""Padding of SDXL's two tokenizers; they are equal otherwise."""
LENGTH = 77
WORD_END = "</w>"

Pair = tuple[str, str]
Pieces = tuple[str, ...]


def byte_letters() -> list[str]:
    """One printable letter for each byte, in the order of CLIP's vocabulary.

    Printable Latin-1 bytes stand for themselves and come first; the other bytes, in ascending
    order, get the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(others)]


def _merge(pieces: Pieces, pair: Pair) -> Pieces:
    """Join every occurrence of ``pair``, from left to right."""
    result: list[str] = []
    rest = list(pieces)
    while rest:
        if tuple(rest[:2]) == pair:
            result.append("".join(pair))
            del rest[:2]
        else:
            result.append(rest.pop(0))
    return tuple(result)


def learn_merges(vocabulary: Iterable[str]) -> list[Pair]:
    """Merge the most frequent pair, ties by alphabet, until every word is one piece."""
    split = [(*word[:-1], word[-1] + WORD_END) for word in vocabulary]
    merges = []
    while counts := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def save_tokenizer(folder: Path, pad: str) -> None:
    """Write vocab.json, merges.txt and the two configuration files."""
    letters = byte_letters()
    merges = learn_merges(words())
    tokens = [*letters, *(c + WORD_END for c in letters), *map("".join, merges), BEGIN, END]
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def save_both(folder: Path) -> None:
    """Write ``tokenizer`` and ``tokenizer_2`` into ``folder``."""
    for name, pad in PADS.items():
        save_tokenizer(folder / name, pad)


def load_both(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The two tokenizers below ``folder``."""
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in PADS)
    return first, second
