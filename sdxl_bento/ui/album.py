"""The pictures of one visit: what was drawn, with what, and which one is looked at."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.pictures.publish import Picture

MOST = 60  # the oldest leave; the store has its own bounds


@dataclass(frozen=True, slots=True)
class Start:
    """A picture to begin with: one of the store, or an uploaded file. `how`: over or refine."""

    shown: str  # what an <img> takes as src
    image_id: str | None = None
    path: str | None = None
    how: str = "over"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished picture. `call`: its native fields, every default filled in.

    `image_id` is None where the store did not take it; `inline` is its address then.
    """

    image_id: str | None
    extension: str
    seed: int
    width: int
    height: int
    call: Mapping[str, Any]
    total_s: float
    start: Start | None = None
    inline: str = ""

    @property
    def src(self) -> str:
        """Where the page finds it: relative, so that any prefix of a proxy fits."""
        return self.inline or f"../images/{self.image_id}.{self.extension}"

    @property
    def download(self) -> str:
        """The same as a file to save: the original with its metadata."""
        return self.inline or f"../download/{self.image_id}.{self.extension}"


@dataclass
class Album:
    """What the server remembers of one open page; it goes with the page."""

    pictures: list[Drawn] = field(default_factory=list)  # the newest first
    chosen: int | None = None
    start: Start | None = None

    def add(self, answer: Answer, start: Start | None) -> None:
        """Put the pictures of a call in front, and choose the first of them."""
        made = answer.generation
        call = made.params.model_dump(mode="json")
        self.pictures[:0] = [
            Drawn(
                image_id=picture.image_id,
                extension=picture.output_format,
                seed=picture.seed,
                width=picture.width,
                height=picture.height,
                call=call,
                total_s=made.timings.total_s,
                start=start,
                inline="" if picture.image_id is not None else _inline(picture),
            )
            for picture in answer.pictures
        ]
        del self.pictures[MOST:]
        self.chosen = 0

    def choose(self, index: int) -> Drawn | None:
        """Look at picture `index`. None, and no change, if there is no such."""
        if not 0 <= index < len(self.pictures):
            return None
        self.chosen = index
        return self.pictures[index]

    @property
    def picture(self) -> Drawn | None:
        """The picture that is looked at."""
        return None if self.chosen is None else self.pictures[self.chosen]


def _inline(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode("ascii")
    return f"data:{MEDIA_TYPES[picture.output_format]};base64,{data}"
