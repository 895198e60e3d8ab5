"""The pictures of one visit: their parameters, and which of them is on the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Task
from sdxl_bento.pictures.encode import MEDIA_TYPES, base64_of
from sdxl_bento.pictures.publish import Picture

MOST = 60  # pictures; older ones are dropped, and the store has bounds of its own


@dataclass(frozen=True, slots=True)
class Start:
    """The picture that a call starts from: one of the store by its id, or an uploaded file.

    `task` is what redraws it: `img2img` or `refine`.
    """

    shown: str  # the src of an <img>
    image_id: str | None = None
    path: str | None = None
    task: Task = "img2img"


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished picture.

    `call` has the native fields that it was drawn with, every default filled in. `image_id` is None
    if the store did not take the picture; then `inline` is a data URL with all of it.
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
        """The address of the picture, relative so that it works behind any prefix of a proxy."""
        return self.inline or f"../images/{self.image_id}.{self.extension}"

    @property
    def download(self) -> str:
        """The address of the file to save: the original with its metadata."""
        return self.inline or f"../download/{self.image_id}.{self.extension}"


@dataclass
class Album:
    """What the server remembers of one open page, for as long as the page is open."""

    pictures: list[Entry] = field(default_factory=list)  # the newest first
    chosen: int | None = None
    start: Start | None = None

    def add(self, answer: Answer, start: Start | None) -> None:
        """Put the pictures of a call in front, and choose the first of them."""
        generation = answer.generation
        call = generation.params.model_dump(mode="json")
        self.pictures[:0] = [
            Entry(
                image_id=picture.image_id,
                extension=picture.output_format,
                seed=picture.seed,
                width=picture.width,
                height=picture.height,
                call=call,
                total_s=generation.timings.total_s,
                start=start,
                inline="" if picture.image_id is not None else _inline(picture),
            )
            for picture in answer.pictures
        ]
        del self.pictures[MOST:]
        self.chosen = 0

    def choose(self, index: int) -> Entry | None:
        """Put picture `index` on the stage. Without such a picture: None, and no change."""
        if not 0 <= index < len(self.pictures):
            return None
        self.chosen = index
        return self.pictures[index]

    @property
    def picture(self) -> Entry | None:
        """The picture on the stage."""
        return None if self.chosen is None else self.pictures[self.chosen]


def _inline(picture: Picture) -> str:
    data = base64_of(picture.data)
    return f"data:{MEDIA_TYPES[picture.output_format]};base64,{data}"
