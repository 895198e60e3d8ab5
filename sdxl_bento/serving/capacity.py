"""How many pictures an idle server can take at once, by its settings.

A call that asks for more is refused for good: it would find no place however often it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sdxl_bento.config import Settings


@dataclass(frozen=True, slots=True)
class Capacity:
    """`running` pictures run, `waiting` more wait; those that wait have `waiting_pixels` in all."""

    running: int
    waiting: int
    waiting_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The capacity of a server with these settings."""
        pixels = int(settings.max_queue_megapixels * 1e6)
        return cls(settings.max_running, settings.max_queue, pixels)

    @property
    def pictures(self) -> int:
        """The most pictures, if they are small."""
        return self.running + self.waiting

    def most(self, pixels: int) -> int:
        """The most pictures of `pixels` pixels each."""
        return self.running + min(self.waiting, self.waiting_pixels // pixels)

    def fits(self, pixels: Sequence[int]) -> bool:
        """Whether an idle server takes pictures with these numbers of pixels, in this order."""
        waiting = pixels[self.running :]
        return len(waiting) <= self.waiting and sum(waiting) <= self.waiting_pixels
