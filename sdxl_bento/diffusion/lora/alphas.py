"""alpha: by how much an adapter's layers count, as its file states it.

A layer adds `alpha / r * up @ down`. alpha is a tensor of the layer, or else it is in PEFT's
configuration, which diffusers writes into the file's header as JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import AdapterMismatch

CONFIG = "lora_adapter_metadata"
# PEFT's patterns are regular expressions, and some that anyone can write take for ever. Meanwhile
# the whole process stands still, because matching holds Python's lock.
_MOST_PATTERNS, _MOST_BRANCHING, _MOST_CHARS, _MOST_BRANCHES = 4096, 32, 300, 4
_REPEATED_GROUP = re.compile(r"\)\s*[*+?{]")


class AlphaConfig:
    """PEFT's configuration in a file's header, checked."""

    def __init__(self, name: str, metadata: Mapping[str, str]) -> None:
        """
        Args:
            name: of the adapter, for messages.
            metadata: of the safetensors header.

        Raises:
            AdapterMismatch: the configuration is not what PEFT writes.
        """
        self._name = name
        self._targets: dict[str, _Target] = {}
        config = self._object(CONFIG, _parsed(name, metadata.get(CONFIG)))
        for key, value in config.items():
            target, dot, option = key.partition(".")
            if dot and option == "lora_alpha":
                self._targets[target] = self._target(config, target, value)

    def scaling(self, target: str, layer: str, rank: int) -> float:
        """alpha / r of a layer, which has its module's name; 1 if the file says nothing of it."""
        if target not in self._targets:
            return 1.0
        return self._targets[target].scaling(layer, rank)

    def _target(self, config: Mapping[str, Any], target: str, value: object) -> _Target:
        alpha = self._number(f"{target}.lora_alpha", value)
        key = f"{target}.alpha_pattern"
        sent = self._object(key, config.get(key))
        if len(sent) > _MOST_PATTERNS or sum(map(bool, map(_branches, sent))) > _MOST_BRANCHING:
            raise self._refusal(key, f"{len(sent)} patterns", "a short list of regular expressions")
        patterns = {
            self._pattern(key, pattern): self._number(f"{key}.{pattern}", each)
            for pattern, each in sent.items()
        }
        stabilised = config.get(f"{target}.use_rslora") or False
        if not isinstance(stabilised, bool):
            raise self._refusal(f"{target}.use_rslora", stabilised, "true or false")
        return _Target(alpha, patterns, stabilised)

    def _object(self, key: str, value: object) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._refusal(key, value, "an object")
        return value

    def _number(self, key: str, value: object) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or isinstance(value, str):
            raise self._refusal(key, value, "a number")
        return number

    def _pattern(self, key: str, pattern: str) -> re.Pattern[str]:
        slow = _REPEATED_GROUP.search(pattern) or _branches(pattern) > _MOST_BRANCHES
        try:
            if not slow and len(pattern) <= _MOST_CHARS:
                return re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError):
            pass
        raise self._refusal(key, pattern, "a short and simple regular expression")

    def _refusal(self, key: str, value: object, wanted: str) -> AdapterMismatch:
        shown = f"{value!r:.60}"
        return AdapterMismatch(self._name, [key], f"its header has {shown} where {wanted} belongs")


class _Target:
    def __init__(self, alpha: float, patterns: Mapping[re.Pattern[str], float], rs: bool) -> None:
        self._alpha, self._patterns, self._stabilised = alpha, patterns, rs

    def scaling(self, layer: str, rank: int) -> float:
        """As PEFT's `get_pattern_key` finds it: the first pattern that matches the name's end."""
        matching = (alpha for pattern, alpha in self._patterns.items() if pattern.match(layer))
        alpha = next(matching, self._alpha)
        # Rank-stabilised LoRA, arXiv 2312.03732.
        return alpha / (math.sqrt(rank) if self._stabilised else rank)


def _branches(pattern: str) -> int:
    """How many signs of a pattern make its matching try several ways, whose numbers multiply.

    The alternatives of a single group only add up, as in `(to_q|to_k|to_v)`.
    """
    pattern = pattern.replace("(?:", "(")
    repeats = sum(pattern.count(sign) for sign in "*+?{")
    return repeats + pattern.count("|") if repeats or pattern.count("(") > 1 else 0


def _parsed(name: str, text: str | None) -> object:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"its header is no JSON, {str(error) or 'nested too deep'}"
        raise AdapterMismatch(name, [CONFIG], reason) from None
