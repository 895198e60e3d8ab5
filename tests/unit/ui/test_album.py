"""What a visit remembers of its pictures."""

from __future__ import annotations

import base64

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.serving.results import Generation, Timings
from sdxl_bento.ui.album import Album


def test_a_picture_that_was_not_stored_is_shown_all_the_same() -> None:
    params = ResolvedParams(prompt="a", model="m", width=8, height=8, sampler="euler", seed=1)
    order = Resolved("generate", params)
    generation = Generation("r", order, (), Timings(0, 0, 0, 0, 0, 0))
    pictures = (Picture(b"one", "png", "i" * 22, 1, 8, 8), Picture(b"two", "webp", None, 2, 8, 8))
    album = Album()
    album.add(Answer(generation, pictures), None)
    stored, lost = album.pictures
    assert (stored.src, stored.download) == (
        f"../images/{'i' * 22}.png",
        f"../download/{'i' * 22}.png",
    )
    assert lost.src == lost.download
    assert base64.b64decode(lost.src.removeprefix("data:image/webp;base64,")) == b"two"
