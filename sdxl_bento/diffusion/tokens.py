"""Which part of a prompt the text encoders read.

CLIP reads 77 tokens, two of which mark the beginning and the end of the text. A longer prompt is
cut off there, and whoever sent it is told what was not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Unread:
    """What the encoders do not read of the text in `field`: they read `read` of `tokens` tokens."""

    field: str
    tokens: int
    read: int
    rest: str


class TokenCounter:
    """Finds where a tokenizer cuts a text off. It can be used in several threads at once.

    It has a copy of the tokenizer, because to tokenize with truncation changes a tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: of transformers, which no other thread uses at this moment."""
        backend = tokenizer.backend_tokenizer
        self._copy = type(backend).from_str(backend.to_str())
        self._copy.no_truncation()
        self._copy.no_padding()
        self.room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()

    def unread(self, field: str, text: str) -> Unread | None:
        """What is not read of the text in `field`; None if all of it is."""
        encoded = self._copy.encode(text, add_special_tokens=False)
        count = len(encoded)
        if count <= self.room:
            return None
        begin, _ = encoded.token_to_chars(self.room)
        return Unread(field, count, self.room, text[begin:])
